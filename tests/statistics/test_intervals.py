"""Intervals and tests against formulas worked by hand, other libraries, and plain loops."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from discernment.statistics.auroc import bootstrap_auroc
from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    ANY_RATE,
    FEWEST_CLUSTERS,
    Interval,
    bootstrap_groups,
    paired_bootstrap,
    widened,
    wilson,
)
from discernment.statistics.paired_tests import holm, mcnemar_exact
from effort import calls, peak_bytes

# ---------------------------------------------------------------------- Wilson


def test_wilson_by_hand() -> None:
    z, n, p = 1.959963984540054, 10, 0.8
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson(8, 10) == pytest.approx((centre - half, centre + half), abs=1e-12)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy_and_holds_the_rate(counts: tuple[int, int]) -> None:
    successes, n = counts
    interval = wilson(successes, n)
    other = binomtest(successes, n).proportion_ci(method="wilson")
    assert interval is not None
    assert interval == pytest.approx((other.low, other.high), abs=1e-9)
    assert 0 <= interval.low <= successes / n <= interval.high <= 1


def test_wilson_of_nothing_and_of_one() -> None:
    assert wilson(0, 0) is None
    one = wilson(1, 1)
    assert one is not None
    assert (one.low, one.high) == (pytest.approx(0.2065, abs=1e-4), 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson(3, 2)


# ---------------------------------------------------------------------- McNemar


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (0, 5), (3, 9), (9, 3), (7, 7), (40, 12)])
def test_mcnemar_is_the_two_sided_sign_test(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar_exact(only_a, only_b) == pytest.approx(min(1.0, 2 * tail), abs=1e-12)


# ---------------------------------------------------------------------- Holm


@settings(max_examples=20)  # statsmodels collects garbage at every call
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    """The i-th smallest of m p-values is multiplied by m - i + 1, and none falls below a smaller one's."""
    corrected, largest = holm(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - place) * p_values[index])
        assert corrected[index] == pytest.approx(min(1.0, largest), abs=1e-12)
    assert len(corrected) == len(p_values)


# ---------------------------------------------------------------------- paired bootstrap


def test_paired_bootstrap_is_near_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.7
    difference = a.astype(float) - b
    half = 1.96 * difference.std() / 20
    interval = paired_bootstrap(a, b, seed=1)
    assert interval == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.012)


def test_paired_bootstrap_gains_from_pairing() -> None:
    base = np.random.default_rng(0).normal(0, 5, 300)
    interval = paired_bootstrap(base + 0.1, base, seed=1, limits=Interval(-math.inf, math.inf))
    assert interval == pytest.approx((0.1, 0.1), abs=1e-9)


def test_clusters_widen_the_paired_interval() -> None:
    rng = np.random.default_rng(0)
    effect = np.repeat(rng.normal(0, 1, 60), 10)  # all ten prompts of a frame fall alike
    frames = np.repeat([f"frame {n}" for n in range(60)], 10)
    alone = paired_bootstrap(effect, np.zeros(600), seed=1)
    together = paired_bootstrap(effect, np.zeros(600), clusters=frames, seed=1)
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(math.sqrt(10), rel=0.15)


def test_paired_bootstrap_with_clusters_of_unequal_size_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(3)
    clusters = rng.integers(0, 25, 150)
    a = rng.normal(0, 1, 150) + clusters / 10
    members = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    means = []
    for _ in range(4000):
        drawn = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        means.append(a[drawn].mean())
    interval = paired_bootstrap(a, np.zeros(150), clusters=clusters, seed=1, resamples=4000)
    assert interval == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.04)


def test_paired_bootstrap_is_fixed_by_its_seed() -> None:
    a, b = np.random.default_rng(0).random((2, 50))
    assert paired_bootstrap(a, b, seed=7) == paired_bootstrap(a, b, seed=7)
    assert paired_bootstrap(a, b, seed=7) != paired_bootstrap(a, b, seed=8)


def test_few_prompts_say_nothing_about_the_spread() -> None:
    few = FEWEST_CLUSTERS - 1
    assert paired_bootstrap([1.0], [0.0]) == ANY_DIFFERENCE
    assert paired_bootstrap(np.ones(few), np.zeros(few)) == ANY_DIFFERENCE
    assert paired_bootstrap(np.ones(50), np.zeros(50), clusters=np.arange(50) % few) == ANY_DIFFERENCE
    assert bootstrap_auroc([0.5], [0.1]) == ANY_RATE
    assert bootstrap_auroc(np.ones(few), np.zeros(500)) == ANY_RATE


def test_what_all_resamples_agree_on_may_still_be_otherwise_elsewhere() -> None:
    """(1 - p) ** n is 2.5 % at the bound p: with that, 12 prompts alike are seen in one of 40 studies."""
    p = 1 - 0.025 ** (1 / 12)
    assert p == pytest.approx(0.2646, abs=1e-4)
    same = np.ones(12)
    assert paired_bootstrap(same, same) == pytest.approx((-p, p))
    assert paired_bootstrap(same, 0 * same) == pytest.approx((1 - p, 1))
    assert paired_bootstrap(0 * same, same) == pytest.approx((-1, p - 1))
    assert paired_bootstrap(same / 2, 0 * same, limits=ANY_RATE) == pytest.approx((0.5 - p, 0.5 + p))
    frames = np.repeat(np.arange(12), 5)
    assert paired_bootstrap(np.ones(60), np.ones(60), clusters=frames) == pytest.approx((-p, p))
    thirds = np.full(12, 1 / 3)  # which add up to something else with each draw, by rounding
    assert paired_bootstrap(thirds, 0 * thirds) == pytest.approx((1 / 3 - p, 1 / 3 + p))
    # An AUROC has no more to say than the smaller of its sides.
    assert bootstrap_auroc(np.ones(300), np.zeros(12)) == pytest.approx((1 - p, 1))
    assert bootstrap_auroc(np.zeros(60), np.ones(300), clusters=(frames, 100 + np.arange(300))) == (
        0,
        pytest.approx(p),
    )
    spread = Interval(0.2, 0.3)
    assert widened(spread, ANY_RATE, 12) == spread


def test_a_statistic_of_fewer_clusters_is_bounded_by_them() -> None:
    def two(toxic_weights: np.ndarray, harmless_weights: np.ndarray) -> np.ndarray:
        return np.ones((2, len(toxic_weights)))

    found = bootstrap_groups(two, 40, 30, [ANY_RATE] * 2, fewest=[12, 100], resamples=20)
    assert found == [
        (pytest.approx(0.025 ** (1 / 12)), 1),
        (pytest.approx(0.025 ** (1 / 30)), 1),
    ]
    assert bootstrap_groups(two, 40, 30, [ANY_RATE] * 2, as_drawn=True, resamples=20) == [(1, 1), (1, 1)]


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="equal, positive length"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="Both groups need prompts"):
        bootstrap_auroc([], [0.1])
    with pytest.raises(ValueError, match="1 cluster ids for 2 prompts"):
        bootstrap_auroc([0.1], [0.1], clusters=([0], []))
    with pytest.raises(ValueError, match="3 cluster ids for 2 prompts"):
        bootstrap_auroc([0.1], [0.1], clusters=([0, 1], [0]))


# ---------------------------------------------------------------------- two groups


def loop_auroc(toxic: np.ndarray, harmless: np.ndarray, draw, resamples: int) -> tuple[float, float]:
    """Percentiles of the share of toxic-harmless pairs in the right order, one resample at a time."""
    values = []
    for _ in range(resamples):
        t, h = draw()
        gap = toxic[t][:, None] - harmless[h][None, :]
        values.append((gap > 0).mean() + (gap == 0).mean() / 2)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def test_auroc_interval_agrees_with_a_loop_with_ties() -> None:
    rng = np.random.default_rng(0)
    toxic, harmless = rng.normal(0.8, 1, 60).round(1), rng.normal(0, 1, 45).round(1)
    assert len(np.intersect1d(toxic, harmless)) > 5
    expected = loop_auroc(toxic, harmless, lambda: (rng.integers(0, 60, 60), rng.integers(0, 45, 45)), 1500)
    assert bootstrap_auroc(toxic, harmless, seed=1) == pytest.approx(expected, abs=0.015)


def test_auroc_interval_of_matched_pairs_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    frame = rng.normal(0, 2, 50)  # a frame moves both of its prompts
    toxic, harmless = frame + rng.normal(0.6, 0.3, 50), frame + rng.normal(0, 0.3, 50)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        frames = rng.integers(0, 50, 50)
        return frames, frames

    expected = loop_auroc(toxic, harmless, draw, 1500)
    paired = bootstrap_auroc(toxic, harmless, clusters=(np.arange(50), np.arange(50)), seed=1)
    apart = bootstrap_auroc(toxic, harmless, seed=1)
    assert paired == pytest.approx(expected, abs=0.015)
    assert paired.high - paired.low < 0.6 * (apart.high - apart.low)


def test_weights_are_whole_draws_of_each_stratum() -> None:
    """Clusters 0 to 11 have both labels, 12 to 31 only toxic prompts, 32 to 46 only harmless ones."""
    toxic_clusters = np.concatenate([np.repeat(np.arange(12), 2), np.arange(12, 32)])
    harmless_clusters = np.concatenate([np.arange(12), np.arange(32, 47)])
    seen = []

    def statistic(toxic_weights: np.ndarray, harmless_weights: np.ndarray) -> np.ndarray:
        seen.append((toxic_weights, harmless_weights))
        return toxic_weights.mean(axis=1)

    bootstrap_groups(
        statistic,
        44,
        27,
        [ANY_RATE],
        clusters=(toxic_clusters, harmless_clusters),
        resamples=200,
    )
    toxic_weights, harmless_weights = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    assert len(toxic_weights) == 200
    assert (toxic_weights[:, 0:24:2] == toxic_weights[:, 1:24:2]).all()
    assert (toxic_weights[:, 0:24:2] == harmless_weights[:, :12]).all()
    assert (harmless_weights[:, :12].sum(axis=1) == 12).all()
    assert (toxic_weights[:, 24:].sum(axis=1) == 20).all()
    assert (harmless_weights[:, 12:].sum(axis=1) == 15).all()


def test_auroc_interval_covers_the_truth() -> None:
    """Of 80 studies with a true AUROC of .76, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    truth = norm.cdf(1 / math.sqrt(2))
    found = [
        bootstrap_auroc(rng.normal(1, 1, 60), rng.normal(0, 1, 60), seed=n, resamples=400) for n in range(80)
    ]
    assert np.mean([i.low <= truth <= i.high for i in found]) >= 0.88


def test_all_resamples_are_done_at_once_and_no_pair_of_prompts_is_looked_at() -> None:
    rng = np.random.default_rng(0)
    toxic, harmless = rng.random(500), rng.random(500)
    few, many = (partial(bootstrap_auroc, toxic, harmless, resamples=n) for n in (200, 2000))
    assert calls(many) < 1.2 * calls(few)
    every_pair = 2000 * 500 * 500  # in one byte each
    assert peak_bytes(many) < every_pair / 2
