"""A model as a measuring instrument: exact, and as it was afterwards."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Clock:
    """Seconds spent, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds = {"forward": 0.0, "backward": 0.0, "contraction": 0.0}

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count the seconds of the `with` block."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[what] += time.perf_counter() - start


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Leave the flags of modules and parameters as they were."""
    training = {module: module.training for module in model.modules()}
    required = {p: p.requires_grad for p in model.parameters()}
    try:
        yield
    finally:
        for parameter, flag in required.items():
            parameter.requires_grad_(flag)
        for module, flag in training.items():
            module.training = flag


@contextmanager
def measuring(model: nn.Module) -> Iterator[None]:
    """Exact attention and experts, no dropout, no parameter gradients; all as it was before afterwards."""
    whole: Any = model
    attention, experts = whole.config._attn_implementation, whole.get_experts_implementation()
    precision = torch.get_float32_matmul_precision()
    with as_it_was(model), sdpa_kernel(SDPBackend.MATH):
        model.eval()
        model.requires_grad_(False)
        torch.set_float32_matmul_precision("highest")
        # Fused attention kernels are inexact in the backward pass; only sdpa has an exact one that means the same.
        if attention not in ("sdpa", "eager"):
            whole.set_attn_implementation("sdpa" if whole._supports_sdpa else "eager")
        # Grouped products know neither float64 nor, everywhere, full float32.
        if whole._can_set_experts_implementation():
            whole.set_experts_implementation("eager")
        try:
            yield
        finally:
            whole.set_experts_implementation(experts)
            whole.set_attn_implementation(attention)
            torch.set_float32_matmul_precision(precision)
