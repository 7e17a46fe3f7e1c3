"""Timing two ways of doing one thing against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(work: Callable[[], object]) -> float:
    """Seconds of the processor in one call, which other processes do not change as much as those of the clock."""
    start = time.process_time()
    work()
    return time.process_time() - start


def slope(sizes: Sequence[int], taken: Sequence[float]) -> float:
    """Log-log slope of the seconds `taken` over the sizes: 1 where they grow alike."""
    return round(float(np.polyfit(np.log(sizes), np.log(taken), 1)[0]), 2)


def ratio(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median seconds of each after one warm-up, taken in turns so that a slow spell of the machine hits both."""
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return {
        "ours_seconds": round(statistics.median(a for a, _ in pairs), 3),
        "theirs_seconds": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "ratio_lowest": round(min(a / b for a, b in pairs), 3),
        "ratio_highest": round(max(a / b for a, b in pairs), 3),
    }
