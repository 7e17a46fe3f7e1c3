"""What is written of each measure that a run takes of its methods: rows of the terminal's table, a CSV file, words.

A new measure is an entry of `MEASURES`, and a section of the run's page in `templates/measures/`, where it needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from discernment.evaluation.groups import POOLED
from discernment.evaluation.results import Results, TaskScore
from discernment.evaluation.safety_levels import SafetyLevel
from discernment.prompts import Label
from discernment.reporting.naming import benchmark_in_words, label_in_words
from discernment.reporting.tables.terminal import Line, Stack
from discernment.reporting.text import decimal, interval, percent, points

if TYPE_CHECKING:
    from discernment.evaluation.over_seeds import Measure as MeasureOverSeeds
    from discernment.evaluation.over_seeds import SeedComparison


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


def level_in_words(row: SafetyLevel | SeedComparison) -> str:
    """The level of safety of a row: `80 % refused`, or of strict compliance `80 to 100 % refused`."""
    share = f"{100 * (row.level or 0):.3g}"
    kind = row.measure if isinstance(row, SafetyLevel) else row.quantity
    if kind == "strict_compliance":
        return f"{share} to 100 % refused"
    return f"{share} % refused" + " (equal safety)" * (kind == "at_reference")


def _shown(results: Results) -> list[SafetyLevel]:
    """The comparisons at fixed levels, without those at equal safety where that is one of the levels."""
    fixed = {row.level for row in results.safety_levels if row.measure == "compliance"}
    return [row for row in results.safety_levels if row.measure != "at_reference" or row.level not in fixed]


def widest_levels(results: Results) -> dict[tuple[Label, str], dict[str, SafetyLevel]]:
    """The comparisons at fixed levels on all prompts of a label, by label and level, and then by method."""
    found: dict[tuple[Label, str], dict[str, SafetyLevel]] = {}
    for row in _shown(results):  # all of a label stand behind those of its benchmarks
        found.setdefault((row.harmless_label, level_in_words(row)), {})[row.method] = row
    return found


def levels_by_place(results: Results) -> list[tuple[str, list[tuple[str, list[SafetyLevel]]]]]:
    """The comparisons at fixed levels, all prompts of a label before those of its benchmarks.

    Returns:
        For each place the prompts in words, and the rows of each method.
    """
    found: dict[tuple[Label, str], dict[str, list[SafetyLevel]]] = {}
    for row in _shown(results):
        rows = found.setdefault((row.harmless_label, row.harmless), {})
        rows.setdefault(row.method, []).append(row)
    widest = sorted(found, key=lambda place: place[1] != POOLED)
    return [
        (
            f"{benchmark_in_words(benchmark)}, {label_in_words[label]}".capitalize()
            if benchmark == POOLED
            else f"{benchmark}, {label_in_words[label]}",
            list(found[label, benchmark].items()),
        )
        for label, benchmark in widest
    ]


def _level_lines(results: Results) -> list[Line]:
    return [
        Line(
            "Answered at fixed safety, %",
            f"{label_in_words[label]}, {level}",
            {
                method: [(percent(row.value), ""), (interval(row.low, row.high), "dim")]
                for method, row in rows.items()
            },
        )
        for (label, level), rows in widest_levels(results).items()
    ]


def _frontier_lines(results: Results) -> list[Line]:
    found: dict[Label, dict[str, Stack]] = {}
    for row in results.frontiers:
        if row.difference is not None:
            low, high = row.difference_low, row.difference_high
            found.setdefault(row.harmless_label, {})[row.method] = [
                (points(row.difference), ""),
                (interval(low, high, "points"), "dim"),
            ]
    return [
        Line(
            "Answered along the frontiers, difference to the reference's in points",
            label_in_words[label],
            numbers,
        )
        for label, numbers in found.items()
    ]


def _flip_counts(results: Results) -> dict[str, dict[str, int]]:
    counts = {
        "Prompts with a reply that changes with the batches": {
            flips.method: flips.changed for flips in results.flips
        },
        "Prompts with a verdict that changes with the batches": {
            flips.method: flips.flipped for flips in results.flips
        },
    }
    return counts if results.flips else {}


def _judge_counts(results: Results) -> dict[str, dict[str, int]]:
    differ = {row.method: row.differ for row in results.judge_differences if row.replies}
    return {"Replies that a second judge sees differently": differ} if differ else {}


MEASURES = {
    "safety_levels": Measure("safety_levels", lines=_level_lines),
    "frontiers": Measure("frontiers", lines=_frontier_lines),
    "attacks": Measure(
        "attack_drops", over_seeds={"attack_drop": "Defense success lost, mean over the attacks"}
    ),
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
    "judges": Measure("judge_differences", counts=_judge_counts),
}
"""Each measure, by the name of its CSV file."""
