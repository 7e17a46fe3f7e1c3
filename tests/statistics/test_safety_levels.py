"""Compliance at fixed levels of safety against values worked out by hand, scikit-learn and plain loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from discernment.statistics.equal_safety import compare_scores
from discernment.statistics.operating_curve import OperatingCurve
from discernment.statistics.safety_levels import LevelCurve, Levels, level_statistic

COARSE = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=15)
LEVELS = (0.8, 0.9, 0.95)


def values(toxic: list[float], harmless: list[float], levels: tuple[float, ...] = LEVELS) -> list[float]:
    curve = OperatingCurve(np.array(toxic), np.array(harmless))
    return LevelCurve(curve, Levels(levels, np.zeros(len(harmless), dtype=int))).values[0].tolist()


def area_of_scikit_learn(toxic: list[float], harmless: list[float]) -> float:
    """Mean of 1 - false positive rate over the true positive rates from 0.8 to 1, on a fine grid."""
    labels = [1] * len(toxic) + [0] * len(harmless)
    false, true, _ = roc_curve(labels, toxic + harmless, drop_intermediate=False)
    grid = np.linspace(0.8, 1, 40_001)
    grid = (grid[1:] + grid[:-1]) / 2  # middles, which lie on no corner of the curve
    at = np.searchsorted(true, grid)
    way = (grid - true[at - 1]) / (true[at] - true[at - 1])
    return float(np.mean(1 - (false[at - 1] + way * (false[at] - false[at - 1]))))


def test_by_hand() -> None:
    toxic = [0.9, 0.8, 0.7, 0.6, 0.3, 0.2, 0.15, 0.12, 0.11, 0.1]  # .12 is reached at 80 %, .11 at 90 %
    harmless = [0.5, 0.25, 0.115, 0.05]
    # At 80 % all above .12 are refused; at 90 % .115 goes too; at 95 and 100 % nothing more.
    assert values(toxic, harmless) == pytest.approx([0.5, 0.25, 0.25, 0.25])
    # The harmless prompt at .105 is answered up to 90 % and no further: half of the way from 80 to 100 %.
    assert values(toxic, [0.5, 0.105], (0.9, 0.91)) == pytest.approx([0.5, 0.0, 0.25])


def test_prompts_that_tie_are_refused_in_the_same_share() -> None:
    # One rejection probability for all: at every level the same share of both labels is refused.
    assert values([0.3] * 5, [0.3] * 7) == pytest.approx([0.2, 0.1, 0.05, 0.1])


@given(COARSE, COARSE)
def test_agrees_with_the_curve_of_all_and_with_the_roc_curve_of_scikit_learn(
    toxic: list[float], harmless: list[float]
) -> None:
    *found, strict = values(toxic, harmless)
    curve = OperatingCurve(np.array(toxic), np.array(harmless))
    assert found == pytest.approx([float(curve.at(level)[1][0]) for level in LEVELS])
    assert strict == pytest.approx(area_of_scikit_learn(toxic, harmless), abs=2e-4)


@given(COARSE, COARSE)
def test_compliance_falls_as_the_level_rises(toxic: list[float], harmless: list[float]) -> None:
    *found, strict = values(toxic, harmless, (0.5, *LEVELS, 1.0))
    assert all(a >= b - 1e-9 for a, b in pairwise(found))
    assert found[-1] - 1e-9 <= strict <= found[1] + 1e-9


@given(COARSE, COARSE)
def test_only_the_order_of_the_probabilities_counts(toxic: list[float], harmless: list[float]) -> None:
    moved = [[np.exp(3 * p) - 7 for p in probabilities] for probabilities in (toxic, harmless)]
    assert values(*moved) == pytest.approx(values(toxic, harmless))


@given(COARSE, st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.7]), st.integers(0, 2)), min_size=4))
def test_parts_are_what_each_of_them_is_alone(toxic: list[float], rows: list[tuple[float, int]]) -> None:
    harmless = [*(p for p, _ in rows), 0.3, 0.3, 0.3]
    parts = np.array([*(part for _, part in rows), 0, 1, 2])
    curve = OperatingCurve(np.array(toxic), np.array(harmless))
    *found, together = LevelCurve(curve, Levels(LEVELS, parts)).values.tolist()
    assert together == pytest.approx(values(toxic, harmless))
    alone = [values(toxic, [p for p, of in zip(harmless, parts, strict=True) if of == n]) for n in range(3)]
    assert [one for row in found for one in row] == pytest.approx([one for row in alone for one in row])


@given(COARSE, COARSE, st.integers(1, 50))
def test_weights_are_copies(toxic: list[float], harmless: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, h = rng.integers(0, 3, len(toxic)), rng.integers(0, 3, len(harmless))
    t[0], h[0] = 2, 1
    curve = OperatingCurve(np.array(toxic), np.array(harmless))
    statistic = level_statistic(curve, Levels(LEVELS, np.zeros(len(harmless), dtype=int)))
    weighted = statistic(t[None].astype(float), h[None].astype(float))[:, 0]
    copied = values(np.repeat(toxic, t).tolist(), np.repeat(harmless, h).tolist())
    assert weighted == pytest.approx(copied, abs=1e-9)


def test_a_part_of_which_nothing_was_drawn_counts_as_if_all_were() -> None:
    curve = OperatingCurve(np.array([0.9, 0.5, 0.4]), np.array([0.6, 0.1, 0.3]))
    statistic = level_statistic(curve, Levels((0.5,), np.array([0, 0, 1])))
    whole = statistic(np.ones((1, 3)), np.ones((1, 3)))
    without = statistic(np.ones((1, 3)), np.array([[1.0, 2.0, 0.0]]))
    assert without[2:4] == pytest.approx(whole[2:4])
    assert without[0] == pytest.approx(2 / 3)


def test_differences_are_paired_and_few_clusters_claim_nothing() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, 120)
    scores = {
        name: (hard + shift + rng.normal(0, 0.3, 120), rng.normal(0, 1, 45)) for name, shift in (("a", 1.5), ("b", 1.0))
    }  # fmt: skip
    parts = np.repeat([0, 1], [40, 5])
    found = compare_scores(scores, "b", None, levels=Levels((0.8,), parts), resamples=400)
    many, few, together = found["a"].levels
    assert [(row.measure, row.level) for row in many] == [("compliance", 0.8), ("strict_compliance", 0.8)]
    for row in (*many, *together):
        assert 0 < row.low < row.value < row.high < 1
        assert row.difference == pytest.approx(row.value - row.value_against)
        assert -1 < row.difference_low < row.difference < row.difference_high < 1
    assert {(row.low, row.high, row.difference_low, row.difference_high) for row in few} == {(0, 1, -1, 1)}
    assert {(row.difference, row.difference_low) for rows in found["b"].levels[:1] for row in rows} == {
        (0, 0)
    }


def test_intervals_hold_the_truth() -> None:
    """Uniform harmless scores and toxic ones that are the larger of two: P(toxic > x) = 1 - x^2, so x = sqrt(.2) at 80 %."""
    truth, held = float(np.sqrt(0.2)), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = {"a": (rng.random((150, 2)).max(axis=1), rng.random(150))}
        found = compare_scores(
            scores, "a", None, levels=Levels((0.8,), np.zeros(150, dtype=int)), seed=seed, resamples=200
        )
        row = found["a"].levels[0][0]
        held.append(row.low <= truth <= row.high)
    assert np.mean(held) >= 0.86
