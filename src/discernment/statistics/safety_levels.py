"""Compliance at fixed levels of safety: what a method answers where a given share of the toxic prompts is refused.

Unlike the share that a reference refuses, a level is the same in every study. Beside the single levels stands strict
compliance: the mean compliance over all levels from 0.8 to 1. It is the part of the area under the operating curve that lies
there, divided by its width: the partial area index of Jiang, Metz and Nishikawa (1996, Radiology 201, 745-750).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from discernment.frozen import Frozen
from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    ANY_RATE,
    FEWEST_CLUSTERS,
    Floats,
    Ids,
    Interval,
    WeightedStatistic,
)
from discernment.statistics.operating_curve import OperatingCurve, WeightedCurve, running_sums

LevelMeasure: TypeAlias = Literal["compliance", "strict_compliance", "at_reference"]
SAFETY_LEVELS = (0.8, 0.9, 0.95)
STRICT_FROM = 0.8
"""The lowest level of strict compliance."""


class AtLevel(Frozen):
    """A method and the one that it is compared with, where each refuses a fixed share of the toxic prompts.

    Attributes:
        measure: `compliance` at the level, `strict_compliance`, the mean over all levels from this one to 1, or
            `at_reference`, compliance at the share that the reference refuses.
        level: The share of the toxic prompts that is refused.
        value: Of the method.
        low: Lower end of its 95 % bootstrap interval over prompts.
        high: Upper end.
        value_against: Of the one that it is compared with, at its own threshold.
        difference: `value` minus `value_against`.
        difference_low: Lower end of its 95 % paired bootstrap interval.
        difference_high: Upper end.
    """

    measure: LevelMeasure
    level: float
    value: float
    low: float
    high: float
    value_against: float
    difference: float
    difference_low: float
    difference_high: float


class Levels(NamedTuple):
    """What is asked of an operating curve, and of which harmless prompts.

    Attributes:
        shares: The levels, each above 0 and at most 1; strict compliance is always added.
        parts: Which part each harmless prompt belongs to, 0, 1, ...; shape (n_harmless,). Every part is looked at alone,
            and if there are several, all of them together come last.
        reference: One more level, that of the reference; None for none.
    """

    shares: Sequence[float]
    parts: Ids
    reference: float | None = None

    @property
    def measures(self) -> list[tuple[LevelMeasure, float]]:
        """What is measured of each part, in order."""
        found: list[tuple[LevelMeasure, float]] = [("compliance", share) for share in self.shares]
        found.append(("strict_compliance", STRICT_FROM))
        return found if self.reference is None else [*found, ("at_reference", self.reference)]


class LevelCurve:
    """The operating curve of a method for several parts of the harmless prompts, whose toxic prompts are the same.

    Args:
        curve: The curve of all harmless prompts.
        levels: What is asked of it.

    Attributes:
        values: Every measure of every part, shape (parts, measures).
    """

    def __init__(self, curve: OperatingCurve, levels: Levels) -> None:
        self._levels = levels
        self._order = np.lexsort((-curve.harmless, levels.parts))
        self._ends = np.append(0, np.cumsum(np.bincount(levels.parts)))
        falling = -curve.harmless[self._order]
        falling_toxic = -curve.toxic[curve.toxic_order]
        # In the order of parts, and of falling rejection probability within each: where it falls below each threshold.
        self._above, self._reaching = (
            np.stack(
                [
                    a + np.searchsorted(falling[a:b], -curve.thresholds, side=side)
                    for a, b in pairwise(self._ends)
                ]
            )
            for side in ("left", "right")
        )
        self._toxic_above = np.searchsorted(falling_toxic, falling, side="left")
        self._toxic_reaching = np.searchsorted(falling_toxic, falling, side="right")
        self._tied = np.flatnonzero(self._toxic_above != self._toxic_reaching)
        self.values = self._answered(curve.weighted(), np.ones((1, len(falling))))[..., 0]

    def answered(self, weighted: WeightedCurve, harmless_weights: Floats) -> Floats:
        """Every measure of every part in resamples.

        Args:
            weighted: The curve in these resamples.
            harmless_weights: How often each harmless prompt was drawn, shape (resamples, n_harmless).

        Returns:
            Shape (parts, measures, resamples); where no prompt of a part was drawn, as if all were.
        """
        found = self._answered(weighted, harmless_weights)
        return np.where(np.isnan(found), self.values[..., None], found)

    def _answered(self, weighted: WeightedCurve, harmless_weights: Floats) -> Floats:
        drawn = harmless_weights.take(self._order, axis=1)
        sums = running_sums(drawn)
        found = [
            self._strict(weighted, drawn)
            if measure == "strict_compliance"
            else self._at(level, weighted, sums)
            for measure, level in self._levels.measures
        ]
        weights = np.diff(sums[:, self._ends], axis=1)
        answered = np.stack([*found, weights])
        if len(self._ends) > 2:
            answered = np.concatenate([answered, answered.sum(axis=2, keepdims=True)], axis=2)
        *found, weights = answered
        shares = np.full((len(found), *weights.shape), np.nan)
        np.divide(found, weights, out=shares, where=weights > 0)
        return np.clip(shares, 0, 1).transpose(2, 0, 1)

    def _at(self, share: float, weighted: WeightedCurve, sums: Floats) -> Floats:
        """What is answered of each part at a level, as weight; shape (resamples, parts)."""
        step, way = weighted.crossing(share)
        rows = np.arange(len(sums))[:, None]
        above, reaching = (sums[rows, places[:, step].T] for places in (self._above, self._reaching))
        return np.asarray(sums[:, self._ends[1:]] - above - way[:, None] * (reaching - above))

    def _strict(self, weighted: WeightedCurve, drawn: Floats) -> Floats:
        """The mean of that over all levels from `STRICT_FROM` to 1; shape (resamples, parts).

        A harmless prompt is answered at every level up to the share of toxic prompts that have a higher rejection
        probability. Where some have the same, it is answered in part from there to the share that has at least as high a
        one: a straight line, whose area is a trapezoid.
        """
        toxic = weighted.toxic_sums
        total = toxic[:, -1:]
        lowest = STRICT_FROM * total
        above = toxic.take(self._toxic_above, axis=1)
        lengths = np.maximum(above - lowest, 0)
        if len(self._tied):
            first, last = above[:, self._tied], toxic.take(self._toxic_reaching[self._tied], axis=1)
            width = np.where(last > first, last - first, 1)
            cut = np.maximum(last - lowest, 0)
            lengths[:, self._tied] = np.where(
                first >= lowest, (first + last) / 2 - lowest, np.square(cut) / (2 * width)
            )
        lengths *= drawn
        return np.add.reduceat(lengths, self._ends[:-1], axis=1) / ((1 - STRICT_FROM) * total)


def level_statistic(curve: OperatingCurve, levels: Levels) -> WeightedStatistic:
    """Every measure of every part, for weights that say how often each prompt was drawn; shape (parts * measures, resamples)."""
    fixed = LevelCurve(curve, levels)

    def answered(toxic_weights: Floats, harmless_weights: Floats) -> Floats:
        weighted = curve.weighted(toxic_weights, harmless_weights)
        return fixed.answered(weighted, harmless_weights).reshape(-1, len(harmless_weights))

    return answered


def clusters_of_parts(levels: Levels, clusters: npt.ArrayLike) -> list[int]:
    """How many clusters of harmless prompts each part has, and all together if there are several.

    Args:
        levels: Says which part each prompt belongs to.
        clusters: The cluster of each, shape (n_harmless,).
    """
    ids = np.asarray(clusters)
    counts = [len(np.unique(ids[levels.parts == part])) for part in np.unique(levels.parts)]
    return [*counts, len(np.unique(ids))] if len(counts) > 1 else counts


def at_levels(
    levels: Levels, ours: Floats, theirs: Floats, intervals: Sequence[Interval], clusters: Sequence[int]
) -> list[list[AtLevel]]:
    """The comparisons of two methods, part by part.

    Args:
        levels: What was asked.
        ours: Of the method, shape (parts, measures).
        theirs: Of the one that it is compared with.
        intervals: Those of all values in that order, and then those of the differences.
        clusters: How many clusters of harmless prompts each part has; no interval is claimed for fewer than ten.
    """
    found = []
    for part, n in enumerate(clusters):
        rows = []
        for k, (measure, level) in enumerate(levels.measures):
            number = part * len(levels.measures) + k
            of_value, of_difference = intervals[number], intervals[number + ours.size]
            if n < FEWEST_CLUSTERS:
                of_value, of_difference = ANY_RATE, ANY_DIFFERENCE
            rows.append(
                AtLevel(
                    measure=measure,
                    level=level,
                    value=ours[part, k],
                    low=of_value.low,
                    high=of_value.high,
                    value_against=theirs[part, k],
                    difference=ours[part, k] - theirs[part, k],
                    difference_low=of_difference.low,
                    difference_high=of_difference.high,
                )
            )
        found.append(rows)
    return found
