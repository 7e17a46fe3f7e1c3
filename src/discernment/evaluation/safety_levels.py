"""Methods side by side at fixed levels of safety, on the harmless prompts of each benchmark."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from discernment.evaluation.groups import Group, Measured
from discernment.frozen import Frozen
from discernment.prompts import Label
from discernment.statistics.equal_safety import Standing
from discernment.statistics.safety_levels import AtLevel, Levels


class Pairs(Frozen):
    """A method and the one that it is compared with, on which prompts.

    Attributes:
        method: The method.
        against: The method that it is compared with.
        toxic: The benchmark of the toxic prompts; `all` for several.
        harmless: The benchmark of the prompts that should be answered; `all` for several.
        harmless_label: Their label.
    """

    method: str
    against: str
    toxic: str
    harmless: str
    harmless_label: Label


class SafetyLevel(AtLevel, Pairs):  # in this order, a row begins with its sides
    """What a method answers where it refuses a fixed share of the toxic prompts, beside the one compared with.

    Attributes:
        method: The method.
        against: The method that it is compared with.
        toxic: The benchmark of the toxic prompts: `all` where there are several.
        harmless: The benchmark of the prompts that should be answered; `all` for several.
        harmless_label: Their label.
        n_toxic: Number of toxic prompts.
        n_harmless: Number of the others.
    """

    n_toxic: int
    n_harmless: int


def levels_of(measured: Measured, shares: Sequence[float], reference: float | None = None) -> Levels:
    """The levels of safety for the harmless prompts of each benchmark, in the order of the benchmarks."""
    places = {name: n for n, name in enumerate(dict.fromkeys(measured.benchmarks))}
    return Levels(shares, np.array([places[name] for name in measured.benchmarks]), reference)


def parts_of(measured: Measured, together: str) -> list[tuple[str, int]]:
    """The parts of `levels_of`: name and number of harmless prompts; all of them are called `together`."""
    counts = list(Counter(measured.benchmarks).items())
    return [*counts, (together, len(measured.harmless))] if len(counts) > 1 else counts


def safety_level_rows(
    toxic: tuple[Group, Group], harmless: tuple[Group, Group], measured: Measured, standing: Standing
) -> list[SafetyLevel]:
    """The rows of a method, of each benchmark and of all together if there are several.

    Args:
        toxic: The toxic prompts as the method and as the one that it is compared with answered them.
        harmless: The prompts that should be answered, likewise.
        measured: Those that count.
        standing: How the method stands on them.
    """
    return [
        SafetyLevel(
            method=toxic[0].method,
            against=toxic[1].method,
            toxic=toxic[0].benchmark,
            harmless=name,
            harmless_label=harmless[0].label,
            n_toxic=len(measured.toxic),
            n_harmless=size,
            **dict(row),
        )
        # No rows where no levels were asked for.
        for (name, size), rows in zip(
            parts_of(measured, harmless[0].benchmark), standing.levels, strict=False
        )
        for row in rows
    ]
