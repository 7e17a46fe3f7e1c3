"""Of many simulated studies, about 95 % of the 95 % intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from discernment.statistics.intervals import paired_bootstrap, wilson


@pytest.mark.parametrize("n", [20, 100, 450])
def test_wilson(n: int) -> None:
    """Exact: the probability of every count, and whether its interval holds the rate."""
    intervals = np.array([wilson(k, n) for k in range(n + 1)])
    rates = np.linspace(0.02, 0.98, 97)
    holds = (intervals[:, 0, None] <= rates) & (rates <= intervals[:, 1, None])
    coverage = (binom.pmf(np.arange(n + 1)[:, None], n, rates) * holds).sum(axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.83  # Wilson's own dips lie near 0 and 1


def verdicts(rng: np.random.Generator, n: int, rates: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """What two methods made of the same prompts; a prompt that is hard for one is hard for the other."""
    common = rng.random(n)
    own = rng.random((2, n))
    luck = np.where(rng.random((2, n)) < 0.6, common, own)
    return luck[0] < rates[0], luck[1] < rates[1]


@pytest.mark.parametrize("rates", [(0.8, 0.7), (0.5, 0.5), (0.93, 0.85)])
def test_paired_bootstrap(rates: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    difference = rates[0] - rates[1]
    held = []
    for n in range(300):
        interval = paired_bootstrap(*verdicts(rng, 120, rates), seed=n, resamples=400)
        held.append(interval.low <= difference <= interval.high)
    assert 0.91 <= np.mean(held) <= 0.985


@pytest.mark.parametrize(("n", "rate"), [(10, 0.1), (30, 0.03)])
def test_paired_bootstrap_of_a_rare_difference(n: int, rate: float) -> None:
    """One method wins a prompt now and then; in a third of the studies and more it wins none."""
    rng = np.random.default_rng(0)
    held, none = [], 0
    for seed in range(600):
        wins = rng.random(n) < rate
        none += not wins.any()
        interval = paired_bootstrap(wins, np.zeros(n), seed=seed, resamples=400)
        held.append(interval.low <= rate <= interval.high)
    assert none > 180
    assert np.mean(held) >= 0.93


def test_clustered_bootstrap_where_the_plain_one_fails() -> None:
    """40 frames of 6 prompts; a frame suits one of the methods as a whole."""
    rng = np.random.default_rng(0)
    frames = np.repeat(np.arange(40), 6)
    held: dict[bool, list[bool]] = {True: [], False: []}
    for n in range(300):
        suits = rng.normal(0.1, 0.3, 40)[frames]
        a, b = suits + rng.normal(0, 0.3, 240), np.zeros(240)
        for clustered in held:
            clusters = frames if clustered else None
            interval = paired_bootstrap(a, b, clusters=clusters, seed=n, resamples=400)
            held[clustered].append(interval.low <= 0.1 <= interval.high)
    assert 0.91 <= np.mean(held[True]) <= 0.985
    assert np.mean(held[False]) < 0.75
