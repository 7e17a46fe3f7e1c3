"""Where a model computes, and in which precision."""

from __future__ import annotations

import os

import torch

from discernment.errors import ModelError
from discernment.models.model_spec import ModelSpec

DTYPE = "DISCERNMENT_DTYPE"
"""Environment variable that says what `dtype: auto` is, whatever the machine has."""
UNITS = ("amx_bf16", "avx512_bf16")
"""What a processor has that multiplies bfloat16 itself; without it bfloat16 is slower than float32."""


def choose_device(spec: ModelSpec) -> torch.device:
    """The device that `spec` asks for; `auto` takes the first GPU.

    Raises:
        ModelError: If there is no such device.
    """
    if spec.device == "auto":
        # Unchecked, a torch that was built for a GPU names one also where there is none.
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(spec.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"The device {spec.device!r} cannot be used here; try `device: auto`.") from error
    return device


def choose_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The dtype that `spec` asks for; `auto` is bfloat16 on a device that multiplies in it, otherwise float32.

    Raises:
        ModelError: If the environment says something else than `float32` or `bfloat16`.
    """
    name = spec.dtype
    if name == "auto":
        name = os.environ.get(DTYPE) or ("bfloat16" if _multiplies_bfloat16(device) else "float32")  # type: ignore[assignment]
        if name not in ("float32", "bfloat16"):
            raise ModelError(f"{DTYPE} is {name!r}; set it to float32 or bfloat16, or leave it unset.")
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def trains_mixed(spec: ModelSpec) -> bool:
    """Whether training computes in bfloat16, with float32 weights: where `auto` would load the model so."""
    return spec.dtype == "auto" and choose_dtype(spec, choose_device(spec)) is torch.bfloat16


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    index = device.type if device.type in ("cpu", "mps") else device.index or 0
    from accelerate.utils import get_max_memory

    return int(get_max_memory().get(index, 0))


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and any(torch.cpu.get_capabilities().get(unit) for unit in UNITS)
