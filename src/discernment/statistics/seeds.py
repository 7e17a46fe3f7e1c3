"""Several training seeds: what one run's interval over prompts cannot say.

A comparison that was repeated with several seeds, on the same prompts, has two sources of chance. The interval over
seeds asks what other seeds would give on these very prompts: Student's t over the differences of the seeds. The
interval over seeds and prompts asks what other seeds would give on other prompts like these: the variances of the
two crossed factors are added, and what both hold, their interaction, is counted once.

Compliance at equal safety and the AUROC are no means over prompts, so what they vary by with the prompts comes from a
bootstrap that draws the same prompts for all seeds: of the mean over seeds, and of each seed. What a single seed
varies by beyond that is the interaction of seeds and prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    FEWEST_CLUSTERS,
    LEVEL,
    NO_SPREAD,
    RESAMPLES,
    Clusters,
    Floats,
    Interval,
    WeightedStatistic,
    bootstrap_groups,
    cluster_numbers,
    widened,
)


@dataclass(frozen=True)
class SeedDifference:
    """A difference of two methods over several seeds.

    Attributes:
        differences: The difference of each seed.
        difference: Their mean.
        over_seeds: 95 % t interval for other seeds on these prompts; the whole range where all seeds agree, as a few do
            by chance.
        over_both: 95 % interval for other seeds on other prompts like these.
        n: Number of prompts that count, the same for every seed.
    """

    differences: tuple[float, ...]
    difference: float
    over_seeds: Interval
    over_both: Interval
    n: int


def seed_difference(differences: npt.ArrayLike, *, clusters: npt.ArrayLike | None = None) -> SeedDifference:
    """Intervals of a mean paired difference.

    Args:
        differences: Shape (seeds, n): of each prompt under each seed, 1 where only the first method handled it
            rightly, -1 where only the second did, else 0.
        clusters: Shape (n,): which cluster each prompt belongs to; without it, each is its own.

    Raises:
        ValueError: If there are fewer than two seeds or two clusters of prompts.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or len(table) < 2:
        raise ValueError(f"An interval over seeds needs at least two seeds, not a table of {table.shape}.")
    seeds, n = table.shape
    ids = cluster_numbers(clusters, n)
    groups = int(ids.max()) + 1 if n else 0
    if groups < 2 or len(ids) != n:
        raise ValueError(f"{groups} clusters for {n} prompts are not enough.")
    of_seed, mean = table.mean(axis=1), float(table.mean())

    # What the mean varies by: seed, cluster of prompts, and what is left of each of their cells.
    deviation = table - mean
    left = table - of_seed[:, None] - table.mean(axis=0) + mean
    freedom = np.array([seeds - 1, groups - 1, (seeds - 1) * (groups - 1)], dtype=np.float64)
    variances = np.array(
        [
            of_seed.var(ddof=1) / seeds,
            np.square(np.bincount(ids, weights=deviation.mean(axis=0))).sum() * groups / freedom[1] / n**2,
            sum(np.square(np.bincount(ids, weights=row)).sum() for row in left)
            * (seeds * groups / freedom[2])
            / (seeds * n) ** 2,
        ]
    )
    over_seeds, over_both = crossed_intervals(mean, variances, seeds, groups)
    return SeedDifference(tuple(float(d) for d in of_seed), mean, over_seeds, over_both, n)


def crossed_intervals(
    mean: float, variances: npt.ArrayLike, seeds: int, clusters: int
) -> tuple[Interval, Interval]:
    """95 % intervals of a mean difference of two shares that varies with seeds and prompts.

    Args:
        mean: The difference.
        variances: Shape (3,): its variance as the seeds show it, as the prompts show it, and their interaction, which
            both hold.
        seeds: Number of seeds.
        clusters: Number of clusters of prompts.

    Returns:
        The intervals over seeds alone and over both, from Student's t with Satterthwaite's degrees of freedom. Seeds that
        agree say nothing of others, so the first is the whole range then; the second, where prompts agree too, is what
        so many clusters can have missed.
    """
    parts = np.asarray(variances, dtype=np.float64)
    freedom = np.array([seeds - 1, clusters - 1, (seeds - 1) * (clusters - 1)], dtype=np.float64)
    # Either factor alone is a lower bound; by chance the difference can fall below it.
    both = max(parts[0], parts[1], parts[0] + parts[1] - parts[2])
    satterthwaite = both**2 / np.sum(parts**2 / freedom) if both > 0 else freedom[0]
    over_seeds, over_both = t_interval(mean, parts[0], freedom[0]), t_interval(mean, both, satterthwaite)
    return (
        ANY_DIFFERENCE if over_seeds is None else _clipped(over_seeds),
        widened(Interval(mean, mean), ANY_DIFFERENCE, clusters) if over_both is None else _clipped(over_both),
    )


def statistics_over_seeds(
    statistics: Sequence[WeightedStatistic],
    clusters: Clusters,
    *,
    fewest: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
) -> list[tuple[list[float], SeedDifference]]:
    """Statistics of two methods over seeds, whatever they are of their prompts, from one bootstrap.

    Args:
        statistics: Each gives k statistics: those of the one method seed by seed, and then those of the other.
        clusters: Which cluster each prompt of either group belongs to.
        fewest: Of how many clusters each of the k statistics is, where some are of fewer than all.
        resamples: Resamples of the bootstrap.

    Returns:
        For each of the k, the values in the order of `statistics`, and their difference; it counts the harmless prompts.
    """
    seeds = len(statistics) // 2
    n_toxic, n_harmless = (np.size(ids) for ids in clusters)

    def values(*weights: Floats) -> Floats:
        return np.stack([np.atleast_2d(statistic(*weights)) for statistic in statistics], axis=1)

    def gaps(*weights: Floats) -> Floats:
        """Of each statistic, the mean difference over the seeds, and that of each seed."""
        ours, theirs = np.split(values(*weights), 2, axis=1)
        each = ours - theirs
        return np.concatenate([each.mean(axis=1, keepdims=True), each], axis=1).reshape(-1, each.shape[-1])

    found = values(np.ones((1, n_toxic)), np.ones((1, n_harmless)))[..., 0]
    limits = [ANY_DIFFERENCE] * (len(found) * (1 + seeds))
    by_prompts = bootstrap_groups(
        gaps, n_toxic, n_harmless, limits, clusters=clusters, as_drawn=True, resamples=resamples
    )
    all_clusters = min(len(np.unique(ids)) for ids in clusters)
    of_statistics = []
    for k, (row, n) in enumerate(zip(found, fewest or [all_clusters] * len(found), strict=True)):
        of_seed = row[:seeds] - row[seeds:]
        of_mean, *of_each = [_variance(i) for i in by_prompts[k * (1 + seeds) : (k + 1) * (1 + seeds)]]
        variances = (
            of_seed.var(ddof=1) / seeds,
            of_mean,
            # A seed alone varies by prompt and by interaction; their mean by prompt and a part of the interaction.
            max(0.0, fmean(of_each) - of_mean) / (seeds - 1),
        )
        mean = float(of_seed.mean())
        alone, both = crossed_intervals(mean, variances, seeds, max(2, min(n, all_clusters)))
        both = both if min(n, all_clusters) >= FEWEST_CLUSTERS else ANY_DIFFERENCE
        difference = SeedDifference(tuple(of_seed.tolist()), mean, alone, both, n_harmless)
        of_statistics.append((row.tolist(), difference))
    return of_statistics


def statistic_over_seeds(
    statistics: Sequence[WeightedStatistic], clusters: Clusters, *, resamples: int = RESAMPLES
) -> tuple[list[float], SeedDifference]:
    """A single statistic, as `statistics_over_seeds`."""
    return statistics_over_seeds(statistics, clusters, resamples=resamples)[0]


def t_interval(mean: float, variance: float, freedom: float) -> Interval | None:
    """95 % interval of an estimate with a variance that is known with so many degrees of freedom (Student's t).

    None where nothing varies: few values may agree by chance, and a t interval of them would have no width.
    """
    from scipy.stats import t as student

    if variance <= NO_SPREAD**2:
        return None
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean - half, mean + half)


def _clipped(interval: Interval) -> Interval:
    return Interval(max(-1.0, interval.low), min(1.0, interval.high))


def _variance(interval: Interval) -> float:
    """The variance of a normal estimate with this interval."""
    from scipy.stats import norm

    return float((interval.high - interval.low) / (2 * norm.ppf((1 + LEVEL) / 2))) ** 2
