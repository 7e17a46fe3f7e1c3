"""Compliance at equal safety along points that a method reaches: checkpoints of its training, or strengths of it.

`equal_safety` moves a threshold on the scores of one finished model. Here verdicts alone count: each point is (share
of toxic prompts refused, share of harmless prompts answered), and two methods are compared where their curves through
these points refuse the same share of toxic prompts. Between two points the curve is straight in normal quantiles, as
an operating curve of normal scores is; straight in the shares themselves it would run below the true one, and the more
so the further apart the points are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    RESAMPLES,
    Clusters,
    Floats,
    Interval,
    WeightedStatistic,
    bootstrap_groups,
)

AREA_LEVELS = 33
Outcomes: TypeAlias = tuple[Floats, Floats]
"""1 for each toxic prompt that was refused and each other that was answered, else 0: (k, n_toxic), (k, n_harmless)."""


@dataclass(frozen=True)
class FrontierComparison:
    """Two methods where both refuse the same share of toxic prompts.

    Attributes:
        toxic_refused: The common share of refused toxic prompts.
        compliance: Compliance of the method there.
        compliance_against: Compliance of the one that it is compared with.
        difference_interval: The 95 % paired bootstrap interval of their difference over prompts.
        common: The range of safety that both methods reached.
        area: Mean compliance of the method over that range: the area under its compliance-safety curve, by its width.
        area_against: The same of the other.
        area_interval: The 95 % paired bootstrap interval of their difference over prompts.
        points: Points (share of toxic prompts refused, compliance) of the method, in their order.
        points_against: Those of the other.
        n_toxic: Number of toxic prompts.
        n_harmless: Number of the others.
    """

    toxic_refused: float
    compliance: float
    compliance_against: float
    difference_interval: Interval
    common: Interval
    area: float
    area_against: float
    area_interval: Interval
    points: tuple[tuple[float, float], ...]
    points_against: tuple[tuple[float, float], ...]
    n_toxic: int
    n_harmless: int

    @property
    def difference(self) -> float:
        """`compliance` minus `compliance_against`."""
        return self.compliance - self.compliance_against

    @property
    def area_difference(self) -> float:
        """`area` minus `area_against`."""
        return self.area - self.area_against


def compliance_at(safety: Floats, compliance: Floats, levels: Floats, *, half: float = 0.0) -> Floats:
    """Compliance where given shares of the toxic prompts are refused, on a line through points.

    The points are taken in order of their safety, wherever they come from; of several with the same
    safety, the line goes through all, the highest compliance first. Beyond the last point on either side the
    compliance of that point stands.

    Args:
        safety: Shares of toxic prompts refused, shape (rows, k), k > 0, strictly between 0 and 1.
        compliance: Shares of harmless prompts answered, shape (rows, k), strictly between 0 and 1 or with a `half`.
        levels: The shares asked for, shape (levels,), strictly between 0 and 1.
        half: How far from none and all the quantile of a compliance is taken, which is infinite there: half a prompt. The
            line goes through the compliance itself.

    Returns:
        The compliances, shape (levels, rows).
    """
    from scipy.special import ndtr, ndtri

    x, wanted = ndtri(safety), ndtri(levels)
    order = np.lexsort((-compliance, x), axis=-1)
    x, compliance = np.take_along_axis(x, order, axis=1), np.take_along_axis(compliance, order, axis=1)
    inside = np.clip(compliance, half, 1 - half)
    y, cut = ndtri(inside), compliance - inside
    last = x.shape[1] - 1
    rows = np.arange(len(x))
    found = []
    for level in wanted:
        below = (x < level).sum(axis=1)
        left, right = np.clip(below - 1, 0, last), np.clip(below, 0, last)
        gap = x[rows, right] - x[rows, left]
        part = np.divide(level - x[rows, left], gap, out=np.zeros(len(x)), where=gap > 0)
        at, cut_at = (line[rows, left] + part * (line[rows, right] - line[rows, left]) for line in (y, cut))
        found.append(ndtr(at) + cut_at)
    return np.stack(found)


def compare_frontiers(
    outcomes: Outcomes,
    against: Outcomes,
    toxic_refused: float | None = None,
    *,
    clusters: Clusters | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> FrontierComparison | None:
    """Compare two methods at equal safety along their points.

    The intervals come from one bootstrap over prompts: each resample draws the same prompts for every point of both
    methods and keeps clusters together. The common share and the common range are held fixed.

    Args:
        outcomes: Those of the method, at k > 0 points in any order.
        against: Those of the one that it is compared with, on the same prompts.
        toxic_refused: The common share of refused toxic prompts; without it, the middle of the common range.
        clusters: As in `bootstrap_groups`.
        seed: Fixes the resamples.
        resamples: How many.

    Returns:
        The comparison; None if the two reached no common range of safety that holds `toxic_refused`.
    """
    sides = outcomes, against
    points, points_against = map(_points, sides)
    common = common_range(sides)
    level = (common.low + common.high) / 2 if toxic_refused is None else toxic_refused
    if common.low >= common.high or not common.low <= level <= common.high:
        return None
    n_toxic, n_harmless = (part.shape[1] for part in outcomes)
    levels = _inside(np.array([level, *np.linspace(*common, AREA_LEVELS)]), n_toxic)

    def differences(*weights: Floats) -> Floats:
        (at, area), (at_against, area_against) = (_at_and_area(side, weights, levels) for side in sides)
        return np.stack([at - at_against, area - area_against])

    limits = [ANY_DIFFERENCE] * 2
    of_difference, of_area = bootstrap_groups(
        differences, n_toxic, n_harmless, limits, clusters=clusters, seed=seed, resamples=resamples
    )
    once = np.ones((1, n_toxic)), np.ones((1, n_harmless))
    found = [[value.item() for value in _at_and_area(side, once, levels)] for side in sides]
    (at, area), (at_against, area_against) = found
    return FrontierComparison(
        toxic_refused=level,
        compliance=at,
        compliance_against=at_against,
        difference_interval=of_difference,
        common=common,
        area=area,
        area_against=area_against,
        area_interval=of_area,
        points=points,
        points_against=points_against,
        n_toxic=n_toxic,
        n_harmless=n_harmless,
    )


def common_range(sides: Sequence[Outcomes]) -> Interval:
    """The shares of toxic prompts refused that all sides reach; where there are none, the low end lies above the high one."""
    reached = [[refused for refused, _ in _points(outcomes)] for outcomes in sides]
    return Interval(max(map(min, reached)), min(map(max, reached)))


def frontier_area(outcomes: Outcomes, common: Interval) -> WeightedStatistic:
    """Mean compliance of a method over a range of safety, as a statistic of weighted prompts.

    Args:
        outcomes: Those of the method, at k > 0 points in any order.
        common: The range, within what the method reaches.
    """
    levels = _inside(np.array([common.low, *np.linspace(*common, AREA_LEVELS)]), outcomes[0].shape[1])

    def area(toxic_weights: Floats, harmless_weights: Floats) -> Floats:
        return _at_and_area(outcomes, (toxic_weights, harmless_weights), levels)[1]

    return area


def _points(outcomes: Outcomes) -> tuple[tuple[float, float], ...]:
    return tuple(zip(*(part.mean(axis=1).tolist() for part in outcomes), strict=True))


def _at_and_area(outcomes: Outcomes, weights: tuple[Floats, ...], levels: Floats) -> tuple[Floats, Floats]:
    """Compliance at the first level, and its mean over the others, in each resample; shapes (resamples,)."""
    safety, compliance = (_shares(*pair) for pair in zip(outcomes, weights, strict=True))
    n_toxic, n_harmless = (of.shape[1] for of in outcomes)
    found = compliance_at(_inside(safety, n_toxic), compliance, levels, half=0.5 / n_harmless)
    return found[0], np.asarray(np.trapezoid(found[1:], dx=1 / (AREA_LEVELS - 1), axis=0))


def _shares(outcomes: Floats, weights: Floats) -> Floats:
    """Weighted means of outcomes, shapes (k, n) and (resamples, n), as shape (resamples, k)."""
    return np.asarray(weights @ outcomes.T / weights.sum(axis=1, keepdims=True))


def _inside(shares: Floats, n: int) -> Floats:
    """Shares of `n` prompts kept half a prompt away from none and all, where the normal quantile is infinite."""
    return np.clip(shares, 0.5 / n, 1 - 0.5 / n)
