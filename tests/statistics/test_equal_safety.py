"""What a method would refuse and answer at every threshold, against other libraries."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from discernment.statistics.auroc import discernment_auroc
from discernment.statistics.operating_curve import OperatingCurve

COARSE = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=15)


def compliance(toxic: list[float], harmless: list[float], share: float) -> float:
    return float(OperatingCurve(np.array(toxic), np.array(harmless)).at(share)[1][0])


def test_by_hand() -> None:
    toxic, harmless = [0.9, 0.8, 0.6, 0.2], [0.7, 0.5, 0.1, 0.05]
    threshold, found = OperatingCurve(np.array(toxic), np.array(harmless)).at(0.5)
    assert (threshold[0], found[0]) == (0.8, 1.0)  # .9 and .8 are refused, no harmless prompt reaches .8
    assert compliance(toxic, harmless, 0.75) == 0.75  # .6 goes too, and .7 with it
    assert compliance(toxic, harmless, 1.0) == 0.5


def test_prompts_that_tie_are_refused_in_the_same_share() -> None:
    toxic, harmless = [0.9, 0.5, 0.5, 0.5], [0.5, 0.5, 0.1, 0.1]
    assert compliance(toxic, harmless, 0.25) == 1.0
    assert compliance(toxic, harmless, 0.5) == pytest.approx(1 - 2 / 3 / 4)  # one in three of the ties
    assert compliance([0.3] * 5, [0.3] * 7, 0.4) == pytest.approx(0.6)  # no discernment at all: chance


@given(COARSE, COARSE, st.integers(10, 1000).map(lambda n: n / 1000))
def test_agrees_with_the_roc_curve_of_scikit_learn(
    toxic: list[float], harmless: list[float], share: float
) -> None:
    labels = [1] * len(toxic) + [0] * len(harmless)
    refused_harmless, refused_toxic, _ = roc_curve(labels, toxic + harmless, drop_intermediate=False)
    x, first = np.unique(refused_toxic, return_index=True)
    last = np.append(first[1:], len(refused_toxic)) - 1
    at = np.searchsorted(x, share)
    exact = np.isclose(x, share, rtol=0, atol=1e-9)
    if exact.any():
        expected = refused_harmless[first[exact.argmax()]]
    else:
        expected = np.interp(
            share, x[[at - 1, at]], [refused_harmless[last[at - 1]], refused_harmless[first[at]]]
        )
    assert compliance(toxic, harmless, share) == pytest.approx(1 - expected, abs=1e-9)


@given(COARSE, COARSE, st.integers(1, 5), st.floats(0.01, 1.0))
def test_weights_are_copies(toxic: list[float], harmless: list[float], seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    t, h = rng.integers(0, 3, (1, len(toxic))), rng.integers(0, 3, (1, len(harmless)))
    t[0, 0], h[0, 0] = 2, 1
    weighted = OperatingCurve(np.array(toxic), np.array(harmless)).at(
        share, t.astype(float), h.astype(float)
    )[1]
    copied = compliance(np.repeat(toxic, t[0]).tolist(), np.repeat(harmless, h[0]).tolist(), share)
    assert weighted[0] == pytest.approx(copied, abs=1e-9)


def test_points_are_few_and_run_from_refusing_nothing_to_refusing_all() -> None:
    rng = np.random.default_rng(0)
    points = OperatingCurve(rng.random(900), rng.random(900)).points()
    assert points[0] == (0.0, 1.0)
    assert points[-1] == (1.0, 0.0)
    assert 150 < len(points) <= 200
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(points))


def test_the_area_under_all_thresholds_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    toxic, harmless = rng.normal(0.8, 1, 70).round(1), rng.normal(0, 1, 60).round(1)
    refused, answered = zip(*OperatingCurve(toxic, harmless).points(), strict=True)
    assert np.trapezoid(answered, refused) == pytest.approx(discernment_auroc(toxic, harmless))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        compliance([0.5], [0.5], share)
