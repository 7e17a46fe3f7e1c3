"""The studies' published numbers are what this version makes of each prompt's published verdict and rejection probability."""

import csv
from pathlib import Path

import pytest

from discernment.evaluation.over_seeds import SeedResults, summarize_seeds
from discernment.evaluation.sample import Sample
from discernment.files import read_json

pytestmark = pytest.mark.slow

STUDY = Path(__file__).parents[2] / "docs" / "study"
ROUNDED = 1e-4
"""Rejection probabilities are published with six digits, which can swap two prompts."""


def samples(row, methods):
    """What each method made of a prompt; the texts are not published."""
    return {
        method: Sample(
            prompt_id=row["prompt_id"],
            benchmark=row["benchmark"],
            label=row["label"],
            prompt=f"{row['benchmark']} {row['prompt_id']}",
            completion="",
            finished=True,
            verdict=row[f"{method} verdict"],
            rejection_probability=float(row[f"{method} rejection probability"]),
        )
        for method in methods
    }


def by_place(rows, methods):
    return {
        (r.quantity, r.method, r.benchmark, r.label, r.toxic, r.level): r for r in rows if r.method in methods
    }


@pytest.mark.parametrize(
    ("folder", "numbers", "reference"),
    [
        (STUDY, "seeds.json", "stl"),
        (STUDY / "fresh", "seeds.json", "stl"),
        (STUDY / "fresh", "against-stl_aug.json", "stl_aug"),
        (STUDY / "control", "seeds.json", "stl_aug large"),
        (STUDY / "mend", "seeds.json", "stl"),
        (STUDY / "mend", "against-stl_aug.json", "stl + stl_aug"),
        (STUDY / "mend", "against-calibrated_stl.json", "calibrated stl"),
        (STUDY / "mend", "against-calibrated_stl_aug.json", "calibrated stl + stl_aug"),
        (STUDY / "gemma", "seeds.json", "stl"),
        (STUDY / "gemma", "against-stl_aug.json", "stl_aug"),
    ],
)
def test_the_study_is_what_its_prompts_say(folder, numbers, reference):
    published = SeedResults.model_validate(read_json(folder / numbers))
    methods = [method for method in published.methods if method != "base"]
    # What stands on another method is named after both.
    assert {"stl", "stl_aug", "dcr"} <= {part for method in methods for part in method.split(" + ")}
    runs = {}
    for seed in published.seeds:
        with (folder / f"seed-{seed}.csv").open(encoding="utf-8") as file:
            rows = [samples(row, methods) for row in csv.DictReader(file)]
        assert len(rows) == 1862
        runs[seed] = {method: [row[method] for row in rows] for method in methods}
    found = summarize_seeds(runs, base_model=published.base_model, reference=reference)
    for ours, theirs in (
        (found.comparisons, published.comparisons),
        (found.safety_levels, published.safety_levels),
    ):
        again, before = by_place(ours, methods), by_place(theirs, methods)
        assert len(again) > 30
        assert again.keys() == before.keys()
        for place, row in again.items():
            for name in ("difference", "low", "high"):
                assert getattr(row, name) == pytest.approx(getattr(before[place], name), abs=ROUNDED), place
