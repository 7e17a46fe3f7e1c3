"""What a stage uses: seconds and peak memory."""

import ctypes
import gc
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Meter:
    """Measures the seconds and the peak memory of a `with` block.

    Attributes:
        seconds: Wall-clock seconds.
        peak_memory_bytes: Peak resident memory of the process, plus that of the GPUs; None where the system does
            not tell.
    """

    seconds: float = 0.0
    peak_memory_bytes: int | None = None

    def __enter__(self) -> Self:
        give_back_freed_memory()  # what an earlier stage left would count as this one's
        _reset_peak()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self.peak_memory_bytes = _peak()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")  # Linux: forget the high-water mark, so that each stage has its own
    except OSError:
        return


def _peak() -> int | None:
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    found = _status("VmHWM")
    return (found or 0) + gpu or None


def resident() -> int | None:
    """Bytes of memory that the process has at present; None where the system does not tell."""
    return _status("VmRSS")


def _status(name: str) -> int | None:
    try:
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(name))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def give_back_freed_memory() -> None:
    """Give the system back what is freed, between two stages; elsewhere than under glibc only collect it."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
