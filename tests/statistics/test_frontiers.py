"""The line through points of safety and compliance, by hand and against normal operating curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from discernment.statistics.frontiers import compare_frontiers, compliance_at

SHARES = st.floats(0.02, 0.98)


def at(safety: Sequence[float], compliance: Sequence[float], level: float) -> float:
    return float(compliance_at(np.array([safety]), np.array([compliance]), np.array([level]))[0, 0])


def test_by_hand() -> None:
    assert at([0.5, norm.cdf(1)], [norm.cdf(1), 0.5], norm.cdf(0.25)) == pytest.approx(norm.cdf(0.75))
    assert at([0.3, 0.7], [0.9, 0.4], 0.7) == pytest.approx(0.4)
    assert at([0.7, 0.3], [0.4, 0.9], 0.7) == pytest.approx(
        0.4
    )  # the order of the checkpoints does not count
    assert at([0.3, 0.7], [0.9, 0.4], 0.1) == pytest.approx(0.9)
    assert at([0.3, 0.7], [0.9, 0.4], 0.95) == pytest.approx(0.4)
    assert at([0.6], [0.8], 0.2) == pytest.approx(0.8)
    assert at([0.4, 0.4, 0.4], [0.2, 0.9, 0.5], 0.4) == pytest.approx(0.9)


def test_all_answered_at_every_strength_is_an_area_of_one() -> None:
    safety = np.arange(20) < np.array([[4], [16]])
    half = np.arange(20) < np.array([[20], [10]])
    everything, nothing = np.ones((2, 20)), np.zeros((2, 20))
    found = compare_frontiers((safety, everything), (safety, nothing), resamples=50)
    assert found is not None
    assert (found.area, found.area_against, found.compliance) == pytest.approx((1, 0, 1))
    # From all answered to a half: each end as it is, and half a prompt less than all on the way.
    ends = [
        float(compliance_at(np.array([[0.2, 0.8]]), half.mean(1)[None], np.array([level]), half=0.025)[0, 0])
        for level in (0.2, 0.5, 0.8)
    ]
    assert ends == pytest.approx([1, norm.cdf(norm.ppf(0.975) / 2) + 0.0125, 0.5])


@given(st.lists(SHARES, min_size=1, max_size=6, unique=True), st.integers(0, 9), st.floats(-2, 2), SHARES)
def test_a_normal_operating_curve_is_met_exactly(
    safety: list[float], seed: int, shift: float, level: float
) -> None:
    shuffled = np.random.default_rng(seed).permutation(safety)
    level = float(np.clip(level, min(safety), max(safety)))
    compliance = norm.cdf(shift - norm.ppf(shuffled))
    assert at(shuffled.tolist(), compliance.tolist(), level) == pytest.approx(
        norm.cdf(shift - norm.ppf(level)), abs=1e-7
    )


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=6), SHARES)
def test_stays_within_the_points(points: list[tuple[float, float]], level: float) -> None:
    safety, compliance = zip(*points, strict=True)
    assert min(compliance) - 1e-9 <= at(safety, compliance, level) <= max(compliance) + 1e-9
