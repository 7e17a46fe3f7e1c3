"""Seconds until `discern --help` and `discern prompts list` have said what they say, in a process of their own."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from benchmarks.timing import seconds

LIMITS = {"--help": 0.4, "prompts list": 1.0}
REPEATS = 9


def measure() -> dict[str, float]:
    """The least and the median of some calls each; `ratio` is the larger share that a least one has of its limit."""
    found: dict[str, float] = {}
    shares = []
    for command, limit in LIMITS.items():
        taken = sorted(seconds(partial(_discern, command.split())) for _ in range(REPEATS))
        name = command.strip("-").replace(" ", "_")
        found |= {
            f"{name}_seconds": round(taken[0], 3),
            f"{name}_median_seconds": round(statistics.median(taken), 3),
            f"{name}_limit_seconds": limit,
        }
        shares.append(taken[0] / limit)
    return {**found, "ratio": round(max(shares), 3), "limit": 1.0}


def _discern(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "discernment", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
