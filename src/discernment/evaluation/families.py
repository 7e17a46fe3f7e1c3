"""Methods that a recipe has in several strengths, compared along the frontiers that their verdicts reach.

A *family* is what lines of a recipe with one method, standing on the same one, are together: `stl` with few and with many refusals,
`scans` at three strengths. Each line is a point of safety and compliance, and two families are compared where both reach, by
verdicts and not by thresholds (`statistics.frontiers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from discernment.evaluation.checkpoints import Checkpoint, compare_checkpoints
from discernment.evaluation.groups import RunGroups, common_samples, is_scored
from discernment.frozen import Frozen
from discernment.prompts import HARMLESS, Label

Families = Mapping[str, Sequence[str]]
"""The lines of each method that has several, by the first of them."""


class FrontierDifference(Frozen):
    """Mean compliance of two families over the levels of safety that both reach, by verdicts.

    Attributes:
        method: The family, by the first of its lines.
        against: The one that it is compared with.
        lines: How many lines it has.
        lines_against: How many the other has.
        toxic: The benchmark of the toxic prompts; `all` for several.
        harmless: The benchmark of the prompts that should be answered; `all` for several.
        harmless_label: Their label.
        n_toxic: Number of toxic prompts with a verdict by every line; without any, nothing can be compared.
        n_harmless: Number of the others.
        level_low: The lowest share of toxic prompts refused that both reach; with `level_high` None where there is none.
        level_high: The highest.
        compliance: Mean compliance of the family over these levels; this and the differences None where there are none.
        compliance_against: That of the other.
        difference: The first minus the second.
        difference_low: Lower end of its 95 % paired bootstrap interval over prompts.
        difference_high: Upper end.
    """

    method: str
    against: str
    lines: int
    lines_against: int
    toxic: str
    harmless: str
    harmless_label: Label
    n_toxic: int
    n_harmless: int
    level_low: float | None = None
    level_high: float | None = None
    compliance: float | None = None
    compliance_against: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None


def families_of(lines: Mapping[str, tuple[str, str | None]]) -> dict[str, list[str]]:
    """The families among the lines of a recipe.

    Args:
        lines: The method of each line, and what it stands on.
    """
    found: dict[tuple[str, str | None], list[str]] = {}
    for line, (method, on) in lines.items():
        found.setdefault((method, None if on == "base" else on), []).append(line)
    return {members[0]: members for members in found.values() if len(members) > 1}


def frontier_differences(groups: RunGroups, families: Families, seed: int = 0) -> list[FrontierDifference]:
    """Compare every family with the reference's, on all prompts of a label together.

    Args:
        groups: The samples of a run.
        families: Those of its recipe.
        seed: Fixes the resamples.

    Returns:
        A row a family and label; nothing where the reference has no other strength.
    """
    return [
        _difference(groups, both, label, seed)
        for both in pairs_of(families, groups.reference)
        for label in HARMLESS
        if groups.holders[label] and groups.holders[Label.TOXIC]
    ]


class Pair(NamedTuple):
    """A family and the reference's: their names and lines."""

    method: str
    lines: Sequence[str]
    against: str
    lines_against: Sequence[str]


def pairs_of(families: Families, reference: str) -> list[Pair]:
    """Every family with the reference's; none where that has no other strength."""
    own = next((name for name, lines in families.items() if reference in lines), None)
    if own is None:
        return []
    return [Pair(name, lines, own, families[own]) for name, lines in families.items() if name != own]


def _difference(groups: RunGroups, both: Pair, label: Label, seed: int) -> FrontierDifference:
    toxic, harmless = groups.pool(Label.TOXIC), groups.pool(label)

    def points(lines: Sequence[str]) -> list[Checkpoint]:
        return [
            Checkpoint(groups.group(line, toxic, Label.TOXIC), groups.group(line, harmless, label))
            for line in lines
        ]

    sides = points(both.lines), points(both.lines_against)
    every = [point for side in sides for point in side]
    n_toxic, n_harmless = (
        len(common_samples(found, is_scored)[0])
        for found in ([point.toxic for point in every], [point.harmless for point in every])
    )
    row = FrontierDifference(
        method=both.method,
        against=both.against,
        lines=len(both.lines),
        lines_against=len(both.lines_against),
        toxic=toxic,
        harmless=harmless,
        harmless_label=label,
        n_toxic=n_toxic,
        n_harmless=n_harmless,
    )
    found = compare_checkpoints(*sides, seed=seed)
    if found is None:
        return row
    numbers = {
        "level_low": found.common.low,
        "level_high": found.common.high,
        "compliance": found.area,
        "compliance_against": found.area_against,
        "difference": found.area_difference,
        "difference_low": found.area_interval.low,
        "difference_high": found.area_interval.high,
    }
    return row.model_copy(update=numbers)
