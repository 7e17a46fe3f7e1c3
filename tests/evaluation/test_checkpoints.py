"""Equal safety along checkpoints: simulated studies whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from discernment.evaluation.checkpoints import Checkpoint, compare_checkpoints
from discernment.evaluation.groups import Group
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.statistics.frontiers import FrontierComparison

# ---------------------------------------------------------------------- simulated studies


@cache  # thousands of prompts come again in every study
def sample(label: Label, n: int, refused: bool, pairs: bool) -> Sample:
    other = Label.TOXIC if label is Label.SEEMINGLY_TOXIC else Label.SEEMINGLY_TOXIC
    return Sample(
        prompt_id=f"{label}-{n}",
        benchmark="bench",
        label=label,
        prompt="?",
        partner=f"{other}-{n}" if pairs else None,
        completion="!",
        finished=True,
        verdict=Verdict.REFUSAL if refused else Verdict.COMPLIANCE,
    )


def group(method: str, label: Label, refused: np.ndarray, pairs: bool = False) -> Group:
    return Group(
        method, "bench", label, [sample(label, n, bool(yes), pairs) for n, yes in enumerate(refused)]
    )


def study(
    seed: int,
    shifts: tuple[float, float],
    strictness: tuple[Sequence[float], Sequence[float]],
    *,
    n: int = 150,
    pairs: bool = False,
    skewed: bool = False,
    toxic_refused: float | None = 0.7,
    resamples: int = 200,
) -> FrontierComparison | None:
    """Two methods that refuse a prompt if its score and their strictness together are positive.

    Toxic prompts score `shift` higher; half of a score is the prompt's own, the other half the method's and the
    checkpoint's. `skewed` makes the score no longer normal, so that the true operating curve is no straight line.
    """
    rng = np.random.default_rng(seed)
    hard_harmless = rng.normal(0, 1, n)
    hard_toxic = hard_harmless if pairs else rng.normal(0, 1, n)

    def refused(hard: np.ndarray, shift: float, strict: float) -> np.ndarray:
        score = (hard + rng.normal(0, 1, n)) / np.sqrt(2)
        score = -np.log1p(-norm.cdf(score)) - 1 if skewed else score  # exponential
        return score + shift + strict > 0

    sides = [
        [
            Checkpoint(
                group(name, Label.TOXIC, refused(hard_toxic, shift, strict), pairs),
                group(name, Label.SEEMINGLY_TOXIC, refused(hard_harmless, 0, strict), pairs),
            )
            for strict in steps
        ]
        for name, shift, steps in zip(("dcr", "stl"), shifts, strictness, strict=True)
    ]
    return compare_checkpoints(*sides, toxic_refused, seed=seed, resamples=resamples)


def truth(shift: float, safety: float) -> float:
    return float(norm.cdf(shift - norm.ppf(safety)))


# The second method has been aligned further, and at other steps: at equal steps it is always the safer one.
EARLY, LATE = (-2.0, -1.2, -0.7, 0.0), (-1.6, -0.6, 0.2)


@pytest.mark.parametrize("pairs", [False, True])
def test_known_difference_is_recovered_and_covered(pairs: bool) -> None:
    found = [study(seed, (1.6, 0.9), (EARLY, LATE), pairs=pairs) for seed in range(50)]
    assert all(found)
    difference = truth(1.6, 0.7) - truth(0.9, 0.7)
    assert np.mean([f.difference for f in found]) == pytest.approx(difference, abs=0.02)
    assert np.mean([f.compliance for f in found]) == pytest.approx(truth(1.6, 0.7), abs=0.02)
    held = [f.difference_interval.low <= difference <= f.difference_interval.high for f in found]
    assert np.mean(held) >= 0.86
    assert np.mean([f.difference_interval.low > 0 for f in found]) >= 0.8
    assert np.mean([f.area_interval.low > 0 for f in found]) >= 0.9


@pytest.mark.parametrize("skewed", [False, True])
def test_no_difference_is_not_found_where_only_the_strictness_differs(skewed: bool) -> None:
    found = [study(seed, (1.2, 1.2), (EARLY, LATE), skewed=skewed) for seed in range(50)]
    assert all(found)
    last = [f.points[-1][1] - f.points_against[-1][1] for f in found]
    assert np.mean(last) > 0.04  # at the last step of each, the comparison would be unfair
    assert np.mean([f.difference for f in found]) == pytest.approx(0, abs=0.02)
    assert np.mean([f.area_difference for f in found]) == pytest.approx(0, abs=0.02)
    for interval in ("difference_interval", "area_interval"):
        held = [getattr(f, interval).low <= 0 <= getattr(f, interval).high for f in found]
        assert np.mean(held) >= 0.88


def test_area_is_the_mean_of_the_curve() -> None:
    found = study(0, (1.5, 0.5), (EARLY, LATE), n=6_000, toxic_refused=None, resamples=2)
    assert found is not None
    assert found.toxic_refused == pytest.approx(sum(found.common) / 2)
    levels = np.linspace(*found.common, 2000)
    for shift, area in ((1.5, found.area), (0.5, found.area_against)):
        assert area == pytest.approx(np.mean([truth(shift, level) for level in levels]), abs=0.02)


# ---------------------------------------------------------------------- what is compared


def test_checkpoints_that_are_the_same_differ_by_nothing() -> None:
    refused = np.random.default_rng(0).random((4, 60)) < np.array([[0.2], [0.5], [0.1], [0.3]])
    side = [
        Checkpoint(group("a", Label.TOXIC, refused[i]), group("a", Label.SEEMINGLY_TOXIC, refused[i + 2]))
        for i in (0, 1)
    ]
    found = compare_checkpoints(side, side[::-1])
    assert found is not None
    p = 1 - 0.025 ** (1 / 60)  # what 60 prompts can have missed
    assert (found.difference, *found.difference_interval) == pytest.approx((0, -p, p))
    assert (found.area_difference, *found.area_interval) == pytest.approx((0, -p, p))
    assert found.points == found.points_against[::-1]


def test_no_common_safety_no_comparison() -> None:
    assert study(0, (1.0, 1.0), ((-3.0, -2.5), (0.5, 1.0)), toxic_refused=None) is None
    assert study(0, (1.0, 1.0), (EARLY, LATE), toxic_refused=0.999) is None
    assert study(0, (1.0, 1.0), (EARLY, ())) is None
    assert study(0, (1.0, 1.0), (EARLY, LATE), n=0) is None


def test_only_prompts_with_a_verdict_everywhere_count() -> None:
    refused = np.random.default_rng(0).random((4, 60)) < 0.5
    refused[0], refused[1] = np.arange(60) < 10, np.arange(60) < 50
    side = [
        Checkpoint(group("a", Label.TOXIC, refused[i]), group("a", Label.BENIGN, refused[i + 2]))
        for i in (0, 1)
    ]
    samples = [
        s.model_copy(update={"verdict": Verdict.UNSCORED}) if n < 4 else s
        for n, s in enumerate(side[1].toxic.samples)
    ]
    torn = [side[0], Checkpoint(Group("a", "bench", Label.TOXIC, samples), side[1].harmless)]
    found = compare_checkpoints(side, torn, 0.5)
    assert found is not None
    assert (found.n_toxic, found.n_harmless) == (56, 60)
    assert found.points[0][0] == pytest.approx(6 / 56)
