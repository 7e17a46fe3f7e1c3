"""Compliance at equal safety: which of two methods answers more when both refuse the same share of toxic prompts.

A method that refuses less answers more; that alone says nothing about discernment. So each method gets the threshold
on its rejection probability at which it refuses the common share of toxic prompts, and what it would answer of
the harmless ones at that threshold is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from discernment.frozen import Frozen
from discernment.statistics.auroc import discernment_auroc
from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    ANY_RATE,
    RESAMPLES,
    Clusters,
    Floats,
    Interval,
    bootstrap_groups,
)
from discernment.statistics.operating_curve import OperatingCurve, WeightedCurve
from discernment.statistics.safety_levels import AtLevel, LevelCurve, Levels, at_levels, clusters_of_parts

Scores: TypeAlias = tuple[Floats, Floats]
"""Rejection probabilities of toxic prompts and of harmless ones; shapes (n_toxic,) and (n_harmless,), both > 0."""


class AtEqualSafety(Frozen):
    """Two methods where both refuse the same share of toxic prompts.

    Attributes:
        threshold: The threshold of the method.
        compliance: Its compliance there.
        low: Lower end of its 95 % bootstrap interval over prompts.
        high: Upper end.
        compliance_against: Compliance of the one that it is compared with, at its own threshold.
        difference: `compliance` minus `compliance_against`.
        difference_low: Lower end of its 95 % paired bootstrap interval.
        difference_high: Upper end.
        auroc_difference: Discernment AUROC of the method minus that of the other; no threshold is involved.
        auroc_difference_low: Lower end of its 95 % paired bootstrap interval.
        auroc_difference_high: Upper end.
        curve: Points (share of toxic prompts refused, compliance) of the method over all thresholds.
    """

    threshold: float
    compliance: float
    low: float
    high: float
    compliance_against: float
    difference: float
    difference_low: float
    difference_high: float
    auroc_difference: float | None = None
    auroc_difference_low: float | None = None
    auroc_difference_high: float | None = None
    curve: list[tuple[float, float]]


class Standing(NamedTuple):
    """How a method stands among others on the same prompts.

    Attributes:
        auroc: The 95 % bootstrap interval of its discernment AUROC.
        equal_safety: Its comparison at equal safety; None where none was asked for.
        levels: Its comparisons at fixed levels of safety, part by part; none where none were asked for.
    """

    auroc: Interval
    equal_safety: AtEqualSafety | None
    levels: Sequence[Sequence[AtLevel]] = ()


def compare_scores(
    scores: Mapping[str, Scores],
    against: str,
    toxic_refused: float | None,
    *,
    levels: Levels | None = None,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Standing]:
    """The AUROC of each method, and its compliance where all refuse the share `toxic_refused` of the toxic prompts.

    The intervals come from one bootstrap over prompts: each resample draws the same prompts for all methods, sets
    all thresholds anew, and keeps clusters together. The common share is held fixed. At fixed levels, the interval of a
    part of the harmless prompts comes from the same draws; a draw without any of its prompts counts as if all were drawn.

    Args:
        scores: Those of each method, on the same prompts in the same order.
        against: The method that each, itself too, is compared with.
        toxic_refused: The common share, above 0 and at most 1; None if methods are not to be compared.
        levels: Fixed levels of safety at which they are compared as well.
        clusters: As in `bootstrap_groups`.
        seed: Fixes the resamples.
        resamples: How many.

    Raises:
        ValueError: If `toxic_refused` is out of range, or as `bootstrap_groups`.
    """
    curves = {method: OperatingCurve(*both) for method, both in scores.items()}
    fixed = _AtLevels(curves, against, levels)
    n, (toxic, harmless) = len(scores), scores[against]
    rates, differences = [ANY_RATE] * n, [_range(method, against) for method in scores]
    limits = rates if toxic_refused is None else [*rates, *rates, *differences, *differences]
    counts = fixed.clusters(clusters)
    found = bootstrap_groups(
        _statistics(curves, against, toxic_refused, fixed),
        len(toxic),
        len(harmless),
        limits + fixed.limits,
        clusters=clusters,
        fewest=[min(len(toxic), len(harmless))] * len(limits) + fixed.fewest(counts),
        seed=seed,
        resamples=resamples,
    )
    intervals = found[: len(limits)]
    at_fixed = fixed.comparisons(found[len(intervals) :], counts)

    def at_equal_safety(k: int, method: str) -> AtEqualSafety | None:
        if toxic_refused is None:
            return None
        return _at(toxic_refused, curves[method], curves[against], intervals[k + n :: n])

    return {
        method: Standing(intervals[k], at_equal_safety(k, method), at_fixed.get(method, ()))
        for k, method in enumerate(scores)
    }


def _range(method: str, against: str) -> Interval:
    """The range of a difference, which for a method and itself is no matter of chance."""
    return Interval(0.0, 0.0) if method == against else ANY_DIFFERENCE


def _statistics(
    curves: Mapping[str, OperatingCurve], against: str, toxic_refused: float | None, fixed: "_AtLevels"
) -> Callable[..., Floats]:
    """What is computed in each resample: the AUROCs, what all answer and the differences, and what is fixed."""

    def statistics(*weights: Floats) -> Floats:
        resampled = {method: curve.weighted(*weights) for method, curve in curves.items()}
        area = {method: curve.auroc() for method, curve in resampled.items()}
        rows = [*area.values()]
        if toxic_refused is not None:
            answered = {method: curve.at(toxic_refused)[1] for method, curve in resampled.items()}
            rows += [
                *answered.values(),
                *(ours - of[against] for of in (answered, area) for ours in of.values()),
            ]
        return np.stack(rows + fixed.statistics(resampled, weights[1]))

    return statistics


class _AtLevels:
    """All methods at fixed levels of safety; nothing where none are asked for."""

    def __init__(self, curves: Mapping[str, OperatingCurve], against: str, levels: Levels | None) -> None:
        self.against = against
        self.levels = levels
        self.curves = {} if levels is None else {m: LevelCurve(curve, levels) for m, curve in curves.items()}
        self.limits = [
            limit
            for method, curve in self.curves.items()
            for limit in (ANY_RATE, _range(method, against))
            for _ in curve.values.ravel()
        ]

    def clusters(self, clusters: Clusters | None) -> list[int]:
        """How many clusters of harmless prompts each part has."""
        if self.levels is None:
            return []
        ids = np.arange(len(self.levels.parts)) if clusters is None else clusters[1]
        return clusters_of_parts(self.levels, ids)

    def fewest(self, counts: Sequence[int]) -> list[int]:
        """The same for each of `statistics`."""
        if self.levels is None:
            return []
        of_values = [n for n in counts for _ in self.levels.measures]
        return of_values * 2 * len(self.curves)

    def statistics(self, resampled: Mapping[str, WeightedCurve], harmless_weights: Floats) -> list[Floats]:
        """The values of each method in resamples, and then their differences to those of the one compared with."""
        drawn = {}
        for method, curve in self.curves.items():
            found = curve.answered(resampled[method], harmless_weights)
            drawn[method] = found.reshape(-1, len(harmless_weights))
        return [row for of in drawn.values() for row in (*of, *(of - drawn[self.against]))]

    def comparisons(
        self, intervals: Sequence[Interval], counts: Sequence[int]
    ) -> dict[str, list[list[AtLevel]]]:
        """The comparisons of each method, part by part, given the intervals of `statistics`."""
        if self.levels is None:
            return {}
        theirs = self.curves[self.against].values
        width = 2 * theirs.size
        return {
            method: at_levels(
                self.levels, curve.values, theirs, intervals[k * width : (k + 1) * width], counts
            )
            for k, (method, curve) in enumerate(self.curves.items())
        }


def _at(
    share: float, curve: OperatingCurve, against: OperatingCurve, intervals: Sequence[Interval]
) -> AtEqualSafety:
    """The comparison, given the intervals of the compliance, of its difference and of that of the AUROCs."""
    (low, high), of_difference, of_auroc = intervals
    (threshold,), (ours,) = curve.at(share)
    _, (theirs,) = against.at(share)
    return AtEqualSafety(
        threshold=threshold,
        compliance=ours,
        low=low,
        high=high,
        compliance_against=theirs,
        difference=ours - theirs,
        difference_low=of_difference.low,
        difference_high=of_difference.high,
        auroc_difference=discernment_auroc(curve.toxic, curve.harmless)
        - discernment_auroc(against.toxic, against.harmless),
        auroc_difference_low=of_auroc.low,
        auroc_difference_high=of_auroc.high,
        curve=curve.points(),
    )
