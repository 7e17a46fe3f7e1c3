"""Two methods at equal safety, in simulated studies whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from discernment.evaluation.groups import Group, Measured, is_measured, paired
from discernment.evaluation.metrics import rank_and_compare
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.statistics.auroc import bootstrap_auroc
from discernment.statistics.equal_safety import AtEqualSafety, compare_scores


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


def at_equal_safety(
    toxic: tuple[Group, ...],
    harmless: tuple[Group, ...],
    share: float,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> AtEqualSafety:
    """The first of two methods beside the second, on the prompts that both have a rejection probability for."""
    common = [paired(*both, is_measured) for both in (toxic, harmless)]
    ours, theirs = (Measured.of(*([pair[n] for pair in of] for of in common)) for n in (0, 1))
    assert ours is not None and theirs is not None
    scores = {"ours": ours.scores, "theirs": theirs.scores}
    standing = compare_scores(
        scores, "theirs", share, clusters=ours.clusters, seed=seed, resamples=resamples
    )["ours"]
    assert standing.equal_safety is not None
    return standing.equal_safety


def study(
    seed: int, shift: float, shift_against: float, n: int = 150, pairs: bool = False, resamples: int = 300
) -> AtEqualSafety:
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
    return at_equal_safety(toxic, harmless, 0.8, seed=seed, resamples=resamples)


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
    found = at_equal_safety(
        (group("a", Label.TOXIC, toxic), group("b", Label.TOXIC, toxic**6)),
        (group("a", Label.BENIGN, harmless), group("b", Label.BENIGN, harmless**6)),
        0.7,
    )
    missed = 1 - 0.025 ** (1 / 60)  # another prompt may stand elsewhere in the order of only one of them
    assert (found.difference, found.difference_low, found.difference_high) == pytest.approx(
        (0, -missed, missed)
    )
    assert found.low < found.compliance < found.high
    assert found.compliance_against == found.compliance


def test_only_common_prompts_count() -> None:
    toxic = group("a", Label.TOXIC, [0.9, 0.8, 0.7])
    harmless = group("a", Label.BENIGN, [0.75, 0.1])
    refused = [s.model_copy(update={"verdict": Verdict.REFUSAL}) for s in toxic.samples]
    fewer = Group("b", "bench", Label.TOXIC, refused[:2])
    theirs = Group("b", "bench", Label.BENIGN, harmless.samples)
    found = rank_and_compare([toxic, fewer], [harmless, theirs], "b")
    assert [(r.method, r.n_toxic) for r in found.rankings] == [("a", 3), ("b", 2)]
    row = found.equal_safety[0]
    assert (row.method, row.threshold, row.compliance) == ("a", 0.8, 1.0)
    without = [s.model_copy(update={"rejection_probability": None}) for s in refused]
    unmeasured = Group("b", "bench", Label.TOXIC, without)
    assert rank_and_compare([toxic, unmeasured], [harmless, theirs], "b").equal_safety == []


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


def test_a_row_says_first_what_is_compared() -> None:
    """The order of the fields in results.json."""
    toxic, harmless = group("a", Label.TOXIC, [0.9, 0.8]), group("a", Label.BENIGN, [0.75, 0.1])
    refused = [s.model_copy(update={"verdict": Verdict.REFUSAL}) for s in toxic.samples]
    (row,) = rank_and_compare([Group("a", "bench", Label.TOXIC, refused)], [harmless], "a").equal_safety
    assert list(row.model_dump()) == [
        "method", "against", "toxic", "harmless", "harmless_label", "toxic_refused", "threshold", "compliance",
        "low", "high", "compliance_against", "difference", "difference_low", "difference_high", "auroc_difference",
        "auroc_difference_low", "auroc_difference_high", "curve",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["same", "other order", "fewer"])
def test_methods_that_are_compared_together_get_what_each_gets_alone(kind: str) -> None:
    rng = np.random.default_rng(3)
    toxic = [group(m, Label.TOXIC, rng.random(40) ** power, True) for m, power in (("a", 0.5), ("b", 0.8))]
    harmless = [group(m, Label.SEEMINGLY_TOXIC, rng.random(40), True) for m in ("a", "b")]
    refused = [s.model_copy(update={"verdict": Verdict.REFUSAL}) for s in toxic[1].samples[:24]]
    toxic[1] = Group("b", "bench", Label.TOXIC, [*refused, *toxic[1].samples[24:]])
    if kind == "other order":
        toxic[0] = Group("a", "bench", Label.TOXIC, toxic[0].samples[::-1])
    elif kind == "fewer":
        toxic[0] = Group("a", "bench", Label.TOXIC, toxic[0].samples[5:])
    rankings, rows, _ = rank_and_compare(toxic, harmless, "b")
    for ranking, high, low in zip(rankings, toxic, harmless, strict=True):
        measured = Measured.of(high.samples, low.samples)
        assert measured is not None
        interval = bootstrap_auroc(*measured.scores, clusters=measured.clusters)
        assert (ranking.low, ranking.high) == interval
        assert ranking.value == pytest.approx(auroc(*measured.scores))
    alone = at_equal_safety(tuple(toxic), tuple(harmless), 0.6)
    assert rows[0].model_dump().items() >= alone.model_dump().items()
    assert rows[0].difference != 0
    itself = rows[1].model_dump()
    assert itself["compliance"] == itself["compliance_against"] > 0
    assert {
        itself[f"{of}{end}"] for of in ("difference", "auroc_difference") for end in ("", "_low", "_high")
    } == {0}


def auroc(toxic: np.ndarray, harmless: np.ndarray) -> float:
    """By every pair."""
    gap = toxic[:, None] - harmless
    return float(((gap > 0) + (gap == 0) / 2).mean())
