"""How much a piece of work takes, in numbers that neither the machine nor its load changes."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any


def calls(work: Callable[[], object]) -> int:
    """How many calls of functions, of Python's and of C's, the work makes: the same whatever NumPy does in one of them."""
    counted = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    work()  # what is imported or cached the first time does not count
    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()  # nor does what others have hooked into it
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()
    return counted


def peak_bytes(work: Callable[[], object]) -> int:
    """How much memory the work holds at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
