"""What is written of each measure that a run takes of its methods: rows of the terminal's table, a CSV file, words.

A new measure is an entry of `MEASURES`, and a section of the run's page in `templates/measures/`, where it needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from discernment.evaluation.results import Results, TaskScore
from discernment.reporting.tables.terminal import Line, Stack
from discernment.reporting.text import decimal, interval

if TYPE_CHECKING:
    from discernment.evaluation.over_seeds import Measure as MeasureOverSeeds


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        rows: The field of `Results` that has its rows.
        lines: Its rows of the terminal's table.
        counts: Its whole numbers at the end of that table, by what is counted and by method.
        over_seeds: What it is called in the results of several seeds.
    """

    rows: str
    lines: Callable[[Results], list[Line]] = lambda results: []
    counts: Callable[[Results], dict[str, dict[str, int]]] = lambda results: {}
    over_seeds: Mapping[MeasureOverSeeds, str] = field(default_factory=dict)


def tasks_by_metric(results: Results) -> dict[str, dict[str, TaskScore]]:
    """What each method reached in tasks of lm-evaluation-harness, by task and metric."""
    found: dict[str, dict[str, TaskScore]] = {}
    for score in results.tasks:
        how = "" if score.filter == "none" else f" ({score.filter})"
        found.setdefault(f"{score.task}, {score.metric}{how}", {})[score.policy] = score
    return found


def _ability_lines(results: Results) -> list[Line]:
    def number(value: float, low: float | None, high: float | None) -> Stack:
        return [(decimal(value), ""), (interval(low, high, "decimal"), "dim")]

    found = results.abilities
    named = {
        "KL to the base model, nats (0: alike)": {a.policy: number(a.kl, a.kl_low, a.kl_high) for a in found},
        "Perplexity ratio to it (above 1: worse)": {
            a.policy: number(a.ratio, a.ratio_low, a.ratio_high) for a in found
        },
    }
    return [Line("General ability", name, numbers) for name, numbers in named.items() if numbers]


def _task_lines(results: Results) -> list[Line]:
    def number(score: TaskScore) -> Stack:
        error = score.standard_error
        return [(decimal(score.value), ""), *([] if error is None else [(f"± {decimal(error)}", "dim")])]

    return [
        Line("Tasks, with standard errors", name, {method: number(score) for method, score in scores.items()})
        for name, scores in tasks_by_metric(results).items()
    ]


def _flip_counts(results: Results) -> dict[str, dict[str, int]]:
    counts = {
        "Replies that change with the batches": {flips.method: flips.changed for flips in results.flips},
        "Verdicts that change with the batches": {flips.method: flips.flipped for flips in results.flips},
    }
    return counts if results.flips else {}


MEASURES = {
    "attacks": Measure("attack_drops"),
    "kernel": Measure("kernels", over_seeds={"kernel_similarity": "Kernel similarity with toxic prompts"}),
    "ability": Measure(
        "abilities",
        lines=_ability_lines,
        over_seeds={
            "kl": "KL to the base model, nats a token",
            "perplexity_ratio": "Perplexity over the base model's",
        },
    ),
    "tasks": Measure("tasks", lines=_task_lines),
    "flips": Measure("flips", counts=_flip_counts),
}
"""Each measure, by the name of its CSV file."""
