"""Several training seeds: what one run's interval over prompts cannot say.

A comparison that was repeated with several seeds, on the same prompts, has two sources of chance. The interval over
seeds asks what other seeds would give on these very prompts: Student's t over the differences of the seeds. The
interval over seeds and prompts asks what other seeds would give on other prompts like these: the variances of the
two crossed factors are added, and what both hold, their interaction, is counted once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from discernment.evaluation.metrics import Group, cluster_ids, common_samples, handled_rightly, is_scored
from discernment.statistics.intervals import LEVEL, Interval

__all__ = ["SeedDifference", "compare_over_seeds", "crossed_intervals", "seed_difference", "t_interval"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeedDifference:
    """A difference of two rates over several seeds.

    Attributes:
        differences: The difference of each seed.
        difference: Their mean.
        over_seeds: 95 % t interval for other seeds on these prompts.
        over_both: 95 % interval for other seeds on other prompts like these.
        n: Number of prompts, the same for every seed.
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
    given = np.arange(n) if clusters is None else np.asarray(clusters)
    ids = np.unique(given, return_inverse=True)[1]
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
        The intervals over seeds alone and over both, from Student's t with Satterthwaite's degrees of freedom.
    """
    parts = np.asarray(variances, dtype=np.float64)
    freedom = np.array([seeds - 1, clusters - 1, (seeds - 1) * (clusters - 1)], dtype=np.float64)
    # Either factor alone is a lower bound; by chance the difference can fall below it.
    both = max(parts[0], parts[1], parts[0] + parts[1] - parts[2])
    satterthwaite = both**2 / np.sum(parts**2 / freedom) if both > 0 else freedom[0]
    return _clipped(t_interval(mean, parts[0], freedom[0])), _clipped(t_interval(mean, both, satterthwaite))


def compare_over_seeds(runs: Sequence[tuple[Group, Group]]) -> SeedDifference | None:
    """Two methods over several seeds, on the prompts that all have a verdict for.

    Args:
        runs: For each seed, the prompts as the method and as the one that it is compared with answered them.

    Returns:
        The difference; None if there are fewer than two seeds or fewer than two clusters of such prompts.
    """
    if len(runs) < 2:
        return None
    sides = common_samples([group for pair in runs for group in pair], is_scored)
    clusters = cluster_ids(sides[0])
    if len(np.unique(clusters)) < 2:
        return None
    right = np.array([[handled_rightly(s) for s in side] for side in sides], dtype=np.float64)
    return seed_difference(right[0::2] - right[1::2], clusters=clusters)


def t_interval(mean: float, variance: float, freedom: float) -> Interval:
    """95 % interval of an estimate with a variance that is known with so many degrees of freedom (Student's t)."""
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean - half, mean + half)


def _clipped(interval: Interval) -> Interval:
    return Interval(max(-1.0, interval.low), min(1.0, interval.high))
