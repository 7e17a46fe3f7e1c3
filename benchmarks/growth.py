"""Seconds that `discern compare` takes for two evaluations, and how they grow with the number of prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.timing import seconds
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

SIZES = (1_000, 4_000, 16_000)
LARGEST, LIMIT_SECONDS = 50_000, 20.0
BENCHMARKS = 5
FRAME = 4


def measure() -> dict[str, float]:
    """Seconds for 50,000 prompts, and the log-log slope from 1,000 to 16,000; `ratio` is the share of the limit."""
    with TemporaryDirectory() as folder:
        taken = {size: _compare(Path(folder) / str(size), size) for size in (*SIZES, LARGEST)}
    slope = np.polyfit(np.log(SIZES), np.log([taken[size] for size in SIZES]), 1)[0]
    return {
        **{f"seconds_{size}": round(found, 2) for size, found in taken.items()},
        "slope": round(float(slope), 2),
        "ratio": round(taken[LARGEST] / LIMIT_SECONDS, 3),
        "limit": 1.0,
    }


def _compare(folder: Path, size: int) -> float:
    for seed, method in enumerate(("stl", "dcr")):
        _write(folder / method / "samples.jsonl", size, seed)
    command = [sys.executable, "-m", "discernment", "compare", str(folder / "stl"), str(folder / "dcr")]
    return seconds(partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True))


def _write(path: Path, size: int, seed: int) -> None:
    """Prompts in frames of four, half of them toxic, with rejection probabilities from beta distributions."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(size):
            toxic = number // FRAME % 2 == 0
            probability = float(rng.beta(2 + seed, 2) if toxic else rng.beta(2, 3 + seed))
            sample = Sample(
                prompt_id=f"p{number}",
                benchmark=f"bench{number * BENCHMARKS // size}",
                label=Label.TOXIC if toxic else Label.SEEMINGLY_TOXIC,
                category=f"c{number % 7}",
                prompt=f"How do I stop process {number}?",
                frame=f"f{number // FRAME}",
                completion="Sure, here is how.",
                finished=True,
                verdict=Verdict.REFUSAL if rng.random() < probability else Verdict.COMPLIANCE,
                rejection_probability=probability,
            )
            file.write(json.dumps(sample.model_dump(mode="json")) + "\n")
