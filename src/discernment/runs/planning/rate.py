"""How fast this machine trains: measured on one layer of a model's width, in a second or so."""

import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from discernment.models.loading import load_config
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, trains_mixed

ROWS, LENGTH, REPEATS = 8, 64, 3


def measure_rate(spec: ModelSpec) -> float:
    """Floating-point operations a second of a training step, in the precision that `spec` trains in.

    One layer of torch's transformer with the model's sizes goes forward and back a few times, with all threads and with one; the
    quickest counts. It is rough: a whole model has other kernels, and other work beside it.
    """
    config: Any = load_config(spec).get_text_config()
    hidden, device = config.hidden_size, choose_device(spec)
    wide, heads = (getattr(config, name, None) for name in ("intermediate_size", "num_attention_heads"))
    layer = nn.TransformerEncoderLayer(
        hidden,
        heads if isinstance(heads, int) and heads and hidden % heads == 0 else 1,  # Mamba has none
        wide if isinstance(wide, int) else 4 * hidden,
        dropout=0.0,
        batch_first=True,
        device=device,
    )
    states = torch.randn(ROWS, LENGTH, hidden, device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=trains_mixed(spec)):
            found = layer(states)
        found.float().square().mean().backward()

    with FlopCounterMode(display=False) as counted:
        step()
    # Where other work has the cores, threads that wait for each other take many times as long as one that does not.
    threads = torch.get_num_threads()
    try:
        seconds = []
        for count in (threads, 1):
            torch.set_num_threads(count)
            seconds += [_seconds(step, device) for _ in range(REPEATS)]
    finally:
        torch.set_num_threads(threads)
    return float(counted.get_total_flops() / min(seconds))


def _seconds(step: Any, device: torch.device) -> float:
    start = time.perf_counter()
    step()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start
