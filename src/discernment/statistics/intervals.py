"""Intervals over prompts: typed wrappers around scipy and statsmodels, which are imported when first needed.

The unit of chance is the prompt, or the cluster of prompts where some belong together (matched pairs, one wording
frame): such prompts fall together, so the bootstrap draws whole clusters. Intervals are 95 % percentile intervals;
with fewer than ten clusters they would be far too narrow, and the whole range of the statistic stands instead.
Where all resamples agree, an interval would have no width: `widened` gives it one. None of them covers the chance of
another training seed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.int64]
Clusters: TypeAlias = tuple[npt.ArrayLike, npt.ArrayLike]
"""Cluster ids of toxic prompts and of harmless ones, of one numbering; shapes (n_toxic,) and (n_harmless,)."""

LEVEL = 0.95
RESAMPLES = 2000
FEWEST_CLUSTERS = 10
NO_SPREAD = 1e-9
"""What rounding alone may make of a width of 0."""
BATCH_ENTRIES = 1_000_000
"""How many weights of one group, or drawn clusters, are held at once."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


ANY_RATE = Interval(0.0, 1.0)
ANY_DIFFERENCE = Interval(-1.0, 1.0)


def widened(interval: Interval, limits: Interval, clusters: int) -> Interval:
    """An interval of no width as one that says how much a number of clusters can have missed; others as they are.

    What befalls a cluster with probability p stays away from all n with probability (1 - p) ** n. That is 2.5 % at
    p = 1 - 0.025 ** (1 / n), about 3.7 / n (the rule of three, whose 3 is for 5 %): so far the statistic may lie on
    either side of what all resamples gave.

    Args:
        interval: A percentile interval.
        limits: The range of the statistic; without ends there is no such bound, and the interval stays.
        clusters: How many there are, of the smaller side where there are two.
    """
    if interval.high - interval.low > NO_SPREAD or math.isinf(limits.low):
        return interval
    missed = 1 - ((1 - LEVEL) / 2) ** (1 / clusters)
    return Interval(max(limits.low, interval.low - missed), min(limits.high, interval.high + missed))


def wilson(successes: float, n: int) -> Interval | None:
    """Wilson's score interval of a proportion; None if there is nothing to count (`n` is 0).

    Args:
        successes: How many; parts of one where what is counted is itself a share.
        n: Of how many.

    Raises:
        ValueError: If `successes` is not between 0 and `n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} cannot be.")
    if n == 0:
        return None
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    rate = successes / n  # the interval holds it, but for rounding
    return Interval(max(0.0, min(float(low), rate)), min(1.0, max(float(high), rate)))


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    *,
    clusters: npt.ArrayLike | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    limits: Interval = ANY_DIFFERENCE,
) -> Interval:
    """Interval of mean(a) - mean(b), where entry i of both belongs to the same prompt.

    Args:
        a: Shape (n,).
        b: Shape (n,).
        clusters: Shape (n,): which cluster each prompt belongs to; without it, each is its own.
        seed: Fixes the resamples.
        resamples: How many.
        limits: The range of the difference, which is the interval if there are fewer than ten clusters; see `widened`.

    Raises:
        ValueError: If there is no prompt, or the shapes differ.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    ids = cluster_numbers(clusters, len(difference))
    if difference.shape != ids.shape or difference.size == 0:
        raise ValueError(
            f"Two rows of equal, positive length are needed, not {np.shape(a)} and {np.shape(b)}."
        )
    size = np.bincount(ids).astype(np.float64)
    if len(size) < FEWEST_CLUSTERS:
        return limits
    total = np.bincount(ids, weights=difference)

    def mean(total: Floats, size: Floats, axis: int) -> Floats:
        return np.asarray(total.sum(axis=axis) / size.sum(axis=axis))

    batch = max(1, BATCH_ENTRIES // len(size))
    (found,) = percentile_bootstrap((total, size), mean, seed, resamples, paired=True, batch=batch)
    return widened(found, limits, len(size))


WeightedStatistic: TypeAlias = Callable[[Floats, Floats], Floats]
"""From weights of shape (resamples, n_toxic) and (resamples, n_harmless) to (resamples,) or (k, resamples)."""


def bootstrap_groups(
    statistic: WeightedStatistic,
    n_toxic: int,
    n_harmless: int,
    limits: Sequence[Interval],
    *,
    clusters: Clusters | None = None,
    fewest: Sequence[int] | None = None,
    as_drawn: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Interval]:
    """Intervals of a statistic of two groups of prompts.

    A resample is handed over as weights: how often each prompt was drawn. Without clusters the two groups are
    drawn separately. A cluster id that stands in both groups (a matched pair) is drawn as one, so that its
    prompts stay together; clusters of toxic prompts only, of harmless ones only, and of both are three strata.

    Args:
        statistic: The statistic, or k of them, of all resamples at once.
        n_toxic: Number of toxic prompts.
        n_harmless: Number of the others.
        limits: The ranges of the statistics, which are the intervals if a group has fewer than ten clusters.
        clusters: Which cluster each prompt of either group belongs to; without it, each is its own.
        fewest: Of how many clusters each statistic is, where some are of fewer than the smaller group has.
        as_drawn: Leave intervals of no width as they are, where a variance is taken from them.
        seed: Fixes the resamples.
        resamples: How many.

    Returns:
        One interval for each statistic.

    Raises:
        ValueError: If a group has no prompt, or there are more or fewer cluster ids than prompts.
    """
    ids = _numbers_of_both(n_toxic, n_harmless, clusters)
    toxic_ids, harmless_ids = ids[:n_toxic], ids[n_toxic:]
    smaller = min(len(np.unique(toxic_ids)), len(np.unique(harmless_ids)))
    if smaller < FEWEST_CLUSTERS:
        return list(limits)
    total = int(ids.max()) + 1
    strata = _strata(np.isin(np.arange(total), toxic_ids), np.isin(np.arange(total), harmless_ids))

    def weighted(*drawn: Ids, axis: int) -> Floats:
        assert axis == -1
        counts = np.ones((len(drawn[0]), total))
        for members, places_drawn in zip(strata, drawn, strict=True):
            counts[:, members] = times_drawn(places_drawn, len(members))
        return statistic(counts.take(toxic_ids, axis=1), counts.take(harmless_ids, axis=1))

    places = [np.arange(len(members)) for members in strata]
    # With several strata, which resample gets which draw depends on this number.
    batch = max(1, BATCH_ENTRIES // max(n_toxic, n_harmless))
    found = percentile_bootstrap(places, weighted, seed, resamples, batch=batch)
    if as_drawn:
        return found
    counts = [smaller] * len(found) if fewest is None else [min(n, smaller) for n in fewest]
    return [widened(*one) for one in zip(found, limits, counts, strict=True)]


def _numbers_of_both(n_toxic: int, n_harmless: int, clusters: Clusters | None) -> Ids:
    """The cluster of each prompt, the toxic ones first."""
    if min(n_toxic, n_harmless) == 0:
        raise ValueError(
            f"Both groups need prompts, there are {n_toxic} toxic and {n_harmless} harmless ones."
        )
    ids = cluster_numbers(None if clusters is None else np.concatenate(clusters), n_toxic + n_harmless)
    if len(ids) != n_toxic + n_harmless:
        raise ValueError(f"There are {len(ids)} cluster ids for {n_toxic + n_harmless} prompts.")
    return ids


def _strata(in_toxic: npt.NDArray[np.bool_], in_harmless: npt.NDArray[np.bool_]) -> list[Ids]:
    """Clusters by the groups that hold them; one that is alone in its stratum is always drawn, and left out."""
    kinds = (in_toxic & ~in_harmless, in_harmless & ~in_toxic, in_toxic & in_harmless)
    return [np.flatnonzero(kind) for kind in kinds if kind.sum() > 1]


def cluster_numbers(clusters: npt.ArrayLike | None, n: int) -> Ids:
    """Cluster ids as 0, 1, 2, ...; without any, each of `n` prompts is its own cluster."""
    if clusters is None:
        return np.arange(n)
    return np.asarray(np.unique(np.asarray(clusters), return_inverse=True)[1], dtype=np.int64)


def times_drawn(drawn: Ids, n: int) -> Floats:
    """How often each of 0 ... n-1 stands in each row of `drawn`; shape (rows, n)."""
    rows = len(drawn)
    flat = drawn + n * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def percentile_bootstrap(
    data: Sequence[npt.NDArray[Any]],
    statistic: Callable[..., Floats],
    seed: int,
    resamples: int,
    *,
    paired: bool = False,
    batch: int | None = None,
) -> list[Interval]:
    """Percentile intervals of one or several statistics of resampled data, as `scipy.stats.bootstrap` takes them.

    Args:
        data: The samples that are drawn from.
        statistic: Of the resampled data and an `axis`, shape (resamples,) or (k, resamples).
        seed: Fixes the resamples.
        resamples: How many.
        paired: Draw the same places from all samples.
        batch: How many resamples are held at once.
    """
    from scipy.stats import bootstrap

    interval = bootstrap(
        tuple(data),
        statistic,
        n_resamples=resamples,
        batch=batch,
        vectorized=True,
        paired=paired,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [
        Interval(float(low), float(high))
        for low, high in zip(np.atleast_1d(interval.low), np.atleast_1d(interval.high), strict=True)
    ]
