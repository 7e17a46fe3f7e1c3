"""Compliance at equal safety against other libraries and simulated studies whose truth is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_curve

from discernment.evaluation.equal_safety import OperatingCurve, compare_at_equal_safety
from discernment.evaluation.metrics import Group, discernment_auroc
from discernment.evaluation.results import EqualSafety
from discernment.evaluation.sample import Sample
from discernment.judges.judge import Verdict
from discernment.prompts import Label

COARSE = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=15)


def group(method: str, label: Label, probabilities: np.ndarray | list[float], pairs: bool = False) -> Group:
    other = Label.TOXIC if label is Label.SEEMINGLY_TOXIC else Label.SEEMINGLY_TOXIC
    samples = [
        Sample(
            prompt_id=f"{label}-{n}",
            benchmark="bench",
            label=label,
            prompt="?",
            partner=f"{other}-{n}" if pairs else None,
            completion="!",
            finished=True,
            verdict=Verdict.COMPLIANCE,
            rejection_probability=float(p),
        )
        for n, p in enumerate(probabilities)
    ]
    return Group(method, "bench", label, samples)


def compliance(toxic: list[float], harmless: list[float], share: float) -> float:
    return float(OperatingCurve(np.array(toxic), np.array(harmless)).at(share)[1][0])


# ---------------------------------------------------------------------- the curve


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


# ---------------------------------------------------------------------- two methods


def study(
    seed: int, shift: float, shift_against: float, n: int = 150, pairs: bool = False, resamples: int = 300
) -> EqualSafety:
    """Two methods whose scores are normal: toxic prompts lie `shift` above the harmless ones.

    A prompt is hard for both methods alike (correlation .5); with `pairs`, it shares that with its partner.
    """
    rng = np.random.default_rng(seed)
    hard_harmless = rng.normal(0, 1, n)
    hard_toxic = hard_harmless if pairs else rng.normal(0, 1, n)

    def probabilities(hard: np.ndarray, shift: float) -> np.ndarray:
        return norm.cdf((hard + rng.normal(0, 1, n)) / np.sqrt(2) + shift)

    toxic = tuple(
        group(name, Label.TOXIC, probabilities(hard_toxic, by), pairs)
        for name, by in (("dcr", shift), ("stl", shift_against))
    )
    harmless = tuple(
        group(name, Label.SEEMINGLY_TOXIC, probabilities(hard_harmless, 0), pairs) for name in ("dcr", "stl")
    )
    found = compare_at_equal_safety(toxic, harmless, 0.8, seed=seed, resamples=resamples)
    assert found is not None
    return found


def truth(shift: float) -> float:
    """Compliance of the population where .8 of its toxic prompts are refused."""
    return float(norm.cdf(shift + norm.ppf(0.2)))


@pytest.mark.parametrize("pairs", [False, True])
def test_known_difference_is_recovered_and_covered(pairs: bool) -> None:
    found = [study(seed, 1.6, 1.0, pairs=pairs) for seed in range(50)]
    difference = truth(1.6) - truth(1.0)
    assert np.mean([f.difference for f in found]) == pytest.approx(difference, abs=0.02)
    assert np.mean([f.compliance for f in found]) == pytest.approx(truth(1.6), abs=0.02)
    assert np.mean([f.difference_low <= difference <= f.difference_high for f in found]) >= 0.86
    assert np.mean([f.low <= truth(1.6) <= f.high for f in found]) >= 0.86
    assert np.mean([f.difference_low > 0 for f in found]) >= 0.8


def test_no_difference_is_not_found() -> None:
    found = [study(seed, 1.2, 1.2) for seed in range(100, 150)]
    assert np.mean([f.difference for f in found]) == pytest.approx(0, abs=0.025)
    assert np.mean([f.difference_low <= 0 <= f.difference_high for f in found]) >= 0.88


def test_threshold_and_scale_do_not_count() -> None:
    """A method that is only stricter, with the same order of prompts, is no better."""
    rng = np.random.default_rng(0)
    toxic, harmless = rng.random(60) ** 0.5, rng.random(60)
    found = compare_at_equal_safety(
        (group("a", Label.TOXIC, toxic), group("b", Label.TOXIC, toxic**6)),
        (group("a", Label.BENIGN, harmless), group("b", Label.BENIGN, harmless**6)),
        0.7,
    )
    assert found is not None
    assert (found.difference, found.difference_low, found.difference_high) == (0, 0, 0)
    assert found.low < found.compliance < found.high
    assert found.compliance_against == found.compliance


def test_only_common_prompts_count() -> None:
    toxic = group("a", Label.TOXIC, [0.9, 0.8, 0.7])
    fewer = Group("b", "bench", Label.TOXIC, toxic.samples[:2])
    harmless = group("a", Label.BENIGN, [0.75, 0.1])
    found = compare_at_equal_safety((toxic, fewer), (harmless, harmless), 1.0)
    assert found is not None
    assert found.threshold == 0.8
    assert found.compliance == 1.0
    nothing = Group("b", "bench", Label.TOXIC, [])
    assert compare_at_equal_safety((toxic, nothing), (harmless, harmless), 0.5) is None


def test_few_prompts_leave_everything_open() -> None:
    found = study(0, 2.0, 0.0, n=6)
    assert (found.low, found.high) == (0, 1)
    assert (found.difference_low, found.difference_high) == (-1, 1)


def test_same_seed_same_interval() -> None:
    assert study(1, 1.0, 0.5) == study(1, 1.0, 0.5)


def test_the_difference_of_the_aurocs_is_recovered_and_covered() -> None:
    # Two normal scores that lie `shift` apart, each of variance 1: the AUROC is the probability of a positive gap.
    expected = norm.cdf(1.5 / np.sqrt(2)) - norm.cdf(0.7 / np.sqrt(2))
    studies = [study(seed, shift=1.5, shift_against=0.7, resamples=200) for seed in range(40)]
    found = [s.auroc_difference for s in studies]
    assert np.mean(found) == pytest.approx(expected, abs=0.02)
    covered = [s.auroc_difference_low <= expected <= s.auroc_difference_high for s in studies]
    assert 0.8 <= np.mean(covered) <= 1
