"""Seconds until `discern --help` and `discern prompts list` have said what they say, and a second `discern run`.

Each is a process of its own. The run has the quickstart's methods and benchmarks, few steps and few tokens; what is
measured is the call that finds everything done.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.timing import seconds
from discernment.runs.built_in import find_recipe

LIMITS = {"--help": 0.4, "prompts list": 1.0}
REPEATS = 9
AGAIN, AGAIN_LIMIT, AGAIN_REPEATS = "run_again", 10.0, 3


def measure(model: str | None = None) -> dict[str, float]:
    """The least and the median of some calls each; `ratio` is the larger share that a least one has of its limit.

    Args:
        model: What to run instead of the quickstart's model.
    """
    taken = {
        command.strip("-").replace(" ", "_"): (_calls(command.split(), REPEATS), limit)
        for command, limit in LIMITS.items()
    }
    with TemporaryDirectory() as folder:
        arguments = ["run", str(_short_recipe(Path(folder), model)), "--out", str(Path(folder) / "run")]
        _discern(arguments)
        taken[AGAIN] = _calls(arguments, AGAIN_REPEATS), AGAIN_LIMIT
    found: dict[str, float] = {}
    for name, (times, limit) in taken.items():
        found |= {
            f"{name}_seconds": round(times[0], 3),
            f"{name}_median_seconds": round(statistics.median(times), 3),
            f"{name}_limit_seconds": limit,
        }
    shares = [times[0] / limit for times, limit in taken.values()]
    return {**found, "ratio": round(max(shares), 3), "limit": 1.0}


def _short_recipe(folder: Path, model: str | None) -> Path:
    recipe = yaml.safe_load(find_recipe("quickstart").read_text(encoding="utf-8"))
    recipe["refine"] |= {"steps": 1, "evaluate_every": 1, "layer": 2}
    recipe["align"] |= {"epochs": 0.05}
    recipe["evaluate"] |= {"max_new_tokens": 1, "unscored_limit": 1}
    if model is not None:
        recipe["model"] = {"model": model}
    path = folder / "short.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _calls(arguments: list[str], repeats: int) -> list[float]:
    return sorted(seconds(partial(_discern, arguments)) for _ in range(repeats))


def _discern(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "discernment", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
