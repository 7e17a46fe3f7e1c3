"""Differences over several seeds against scipy, statsmodels, and simulated runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from statsmodels.regression.linear_model import OLS

from discernment.statistics.seeds import seed_difference, t_interval


def test_interval_over_seeds_is_the_t_interval_of_scipy() -> None:
    table = np.random.default_rng(0).choice([-1, 0, 1], (5, 80), p=[0.1, 0.7, 0.2])
    found = seed_difference(table)
    expected = ttest_1samp(table.mean(axis=1), 0).confidence_interval()
    assert found.over_seeds == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.difference == pytest.approx(table.mean())
    assert (len(found.differences), found.n) == (5, 80)


def test_by_hand() -> None:
    """Two seeds, two prompts; the additive part explains everything, so that nothing is counted twice."""
    found = seed_difference([[0.5, 0.1], [0.3, -0.1]])
    assert found.differences == pytest.approx((0.3, 0.1))
    half = student.ppf(0.975, 1) * np.sqrt(0.02 / 2)
    assert found.over_seeds == pytest.approx((max(-1, 0.2 - half), min(1, 0.2 + half)))
    variances = np.array([0.02 / 2, 0.08 / 2])  # of the seeds' means, of the prompts' means
    freedom = variances.sum() ** 2 / (variances**2).sum()
    half = student.ppf(0.975, freedom) * np.sqrt(variances.sum())
    assert found.over_both == pytest.approx((max(-1, 0.2 - half), min(1, 0.2 + half)))


@pytest.mark.parametrize("clusters", [np.arange(60), np.repeat(np.arange(15), 4), np.arange(60) ** 2 // 300])
def test_one_factor_alone_equals_cluster_robust_errors_of_statsmodels(clusters: np.ndarray) -> None:
    """Identical seeds leave only the prompts."""
    row = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.6, 0.3])
    found = seed_difference(np.tile(row, (4, 1)), clusters=clusters)
    assert found.over_seeds == (-1, 1)
    groups = len(np.unique(clusters))
    fit = OLS(row, np.ones(60)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    error = float(fit.bse[0]) * np.sqrt(groups / (groups - 1))
    half = student.ppf(0.975, groups - 1) * error
    assert found.over_both == pytest.approx((row.mean() - half, row.mean() + half), abs=1e-6)


@pytest.mark.parametrize(
    ("seed_spread", "prompt_spread", "cell_spread"), [(0.05, 0.5, 0.3), (0.1, 0.2, 0.2), (0.0, 0.2, 0.8)]
)
def test_coverage(seed_spread: float, prompt_spread: float, cell_spread: float) -> None:
    """Of 600 studies with 4 seeds and 100 prompts, about 95 % of the intervals hold what they speak of."""
    rng = np.random.default_rng(0)
    over_seeds, over_both = [], []
    for _ in range(600):
        seeds, prompts = rng.normal(0, seed_spread, 4), rng.normal(0, prompt_spread, 100)
        table = 0.1 + seeds[:, None] + prompts + rng.normal(0, cell_spread, (4, 100))
        found = seed_difference(table)
        on_these = 0.1 + prompts.mean()  # what other seeds give on these prompts
        over_seeds.append(found.over_seeds.low <= on_these <= found.over_seeds.high)
        over_both.append(found.over_both.low <= 0.1 <= found.over_both.high)
    assert 0.92 <= np.mean(over_seeds) <= 0.98
    assert 0.92 <= np.mean(over_both) <= 0.99


def test_interval_over_seeds_alone_is_no_claim_about_other_prompts() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal(0, 0.5, 100) + rng.normal(0, 0.01, (4, 100))
    found = seed_difference(table)
    narrow, wide = (i.high - i.low for i in (found.over_seeds, found.over_both))
    assert wide > 5 * narrow


def test_seeds_that_agree_say_nothing_of_other_seeds() -> None:
    """Each wins one prompt of twelve, another with each seed: as many, by chance."""
    found = seed_difference(np.eye(3, 12))
    assert found.differences == pytest.approx([1 / 12] * 3)
    assert found.over_seeds == (-1, 1)
    assert -1 < found.over_both.low < 1 / 12 < found.over_both.high < 1
    assert t_interval(0.1, 0.0, 2) is None
    assert t_interval(0.1, np.var([0.1 + 0.2, 0.3, 0.3], ddof=1), 2) is None  # they differ by rounding


def test_prompts_that_agree_too_leave_what_so_many_can_have_missed() -> None:
    p = 1 - 0.025 ** (1 / 12)  # as in one study without seeds
    assert seed_difference(np.zeros((3, 12))).over_both == pytest.approx((-p, p))
    assert seed_difference(np.ones((3, 24)), clusters=np.arange(24) // 2).over_both == pytest.approx(
        (1 - p, 1)
    )


def test_intervals_over_few_seeds_and_prompts_have_a_width_and_cover() -> None:
    rng = np.random.default_rng(0)
    agree, held = 0, []
    for _ in range(400):
        by_prompt = np.clip(rng.normal(0.05, 0.02, 25), 0, 1)
        found = seed_difference(rng.random((3, 25)) < by_prompt)
        agree += len(set(found.differences)) == 1
        assert found.over_seeds.high - found.over_seeds.low > 1e-3
        held.append(found.over_seeds.low <= by_prompt.mean() <= found.over_seeds.high)
    assert agree > 15
    assert np.mean(held) >= 0.93


def test_too_little_to_say() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        seed_difference([[0.1, 0.2]])
    with pytest.raises(ValueError, match="not enough"):
        seed_difference([[0.1], [0.2]])
