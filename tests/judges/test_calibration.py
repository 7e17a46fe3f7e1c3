"""A judge against people: hand-worked numbers, scikit-learn, and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score
from statsmodels.stats.proportion import proportion_confint

from discernment.errors import DataError
from discernment.judges import KeywordJudge, train_classifier
from discernment.judges.calibration import (
    Confusion,
    agreement,
    calibrate,
    corrected_rate,
    judge_leaving_one_model_out,
)
from discernment.judges.labelled import LabelledCompletion
from discernment.judges.verdict import Verdict

R, P, C, U = Verdict.REFUSAL, Verdict.PARTIAL_REFUSAL, Verdict.COMPLIANCE, Verdict.UNSCORED
SAYS = {R: "I can't help with that.", C: "Boil the eggs for ten minutes.", U: ""}


def example(people: Verdict, prompt: str = "p", **fields: str) -> LabelledCompletion:
    return LabelledCompletion(
        prompt=prompt, completion=fields.pop("completion", "c"), verdict=people, **fields
    )


def make_cases(n: int, seed: int = 0) -> list[tuple[LabelledCompletion, Verdict]]:
    rng = np.random.default_rng(seed)
    people = rng.choice([R, P, C], n, p=[0.4, 0.1, 0.5])
    judge = np.where(rng.random(n) < 0.8, people, rng.choice([R, C, U], n))
    return [
        (example(Verdict(p), f"prompt {i}"), Verdict(j))
        for i, (p, j) in enumerate(zip(people, judge, strict=True))
    ]


def test_numbers_equal_scikit_learn() -> None:
    cases = make_cases(400)
    scored = [(e.verdict is R, said is R) for e, said in cases if said is not U]
    people, judge = zip(*scored, strict=True)
    found = agreement("all", cases)
    assert (found.n, found.unscored) == (400, 400 - len(scored))
    assert found.unscored > 0
    assert found.people == pytest.approx(np.mean(people))
    assert found.judge.value == pytest.approx(np.mean(judge))
    assert found.accuracy.value == pytest.approx(np.mean(np.equal(people, judge)))
    assert found.precision.value == pytest.approx(precision_score(people, judge))
    assert found.recall.value == pytest.approx(recall_score(people, judge))
    assert found.f1.value == pytest.approx(f1_score(people, judge))
    assert found.kappa.value == pytest.approx(cohen_kappa_score(people, judge))
    assert (found.recall.low, found.recall.high) == pytest.approx(
        proportion_confint(sum(np.logical_and(people, judge)), sum(people), method="wilson")
    )


def test_bootstrap_equals_brute_force() -> None:
    """Prompts with three replies each: whole prompts are drawn."""
    rng = np.random.default_rng(3)
    cases = [
        (e.model_copy(update={"prompt": f"prompt {n // 3}"}), said)
        for n, (e, said) in enumerate(make_cases(150, 5))
    ]
    rows = np.array([(e.verdict is R, said is R, said is not U) for e, said in cases]).reshape(50, 3, 3)
    f1s, kappas = [], []
    for _ in range(400):
        people, judge, scored = rows[rng.integers(50, size=50)].reshape(-1, 3).T
        f1s.append(f1_score(people[scored], judge[scored]))
        kappas.append(cohen_kappa_score(people[scored], judge[scored]))
    found = agreement("all", cases)
    assert (found.f1.low, found.f1.high) == pytest.approx(np.percentile(f1s, [2.5, 97.5]), abs=0.03)
    assert (found.kappa.low, found.kappa.high) == pytest.approx(np.percentile(kappas, [2.5, 97.5]), abs=0.04)


def test_perfect_and_constant_judges() -> None:
    people = [R, C] * 10
    perfect = agreement("all", [(example(v, str(n)), v) for n, v in enumerate(people)])
    assert perfect.kappa.value == perfect.f1.value == perfect.accuracy.value == 1
    never = agreement("all", [(example(v, str(n)), C) for n, v in enumerate(people)])
    assert never.precision is None
    assert (never.recall.value, never.f1.value, never.kappa.value) == (0, 0, 0)


def test_few_prompts_have_no_narrow_interval() -> None:
    found = agreement("all", [(example(R, str(n % 9)), R) for n in range(90)] + [(example(C, "0"), C)])
    assert (found.f1.low, found.f1.high, found.kappa.low, found.kappa.high) == (0, 1, -1, 1)


def test_nothing_to_count() -> None:
    for cases in ([], [(example(R), U)]):
        found = agreement("all", cases)
        assert found.accuracy is found.kappa is found.people is found.judge is None
        assert found.unscored == len(cases)
    alike = agreement("all", [(example(R, str(n)), R) for n in range(20)])
    assert alike.kappa is alike.f1 is None
    assert alike.recall.value == 1


def test_corrected_rate_by_hand() -> None:
    # Sensitivity 80/100, specificity 90/100, rate 45/100: (0.45 + 0.9 - 1) / (0.8 + 0.9 - 1) = 0.5.
    found = corrected_rate(45, 100, Confusion(both=80, people_only=20, judge_only=10, neither=90))
    assert found.value == pytest.approx(0.5)
    assert 0.3 < found.low < 0.5 < found.high < 0.7


def test_corrected_rate_of_a_perfect_judge_is_near_wilson() -> None:
    found = corrected_rate(45, 100, Confusion(100_000, 0, 0, 100_000))
    low, high = proportion_confint(45, 100, method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((0.45, low, high), abs=2e-3)


def test_corrected_rate_stays_in_range() -> None:
    errors = Confusion(both=80, people_only=20, judge_only=20, neither=80)
    assert corrected_rate(0, 50, errors).value == corrected_rate(0, 50, errors).low == 0
    assert corrected_rate(50, 50, errors).value == corrected_rate(50, 50, errors).high == 1


@pytest.mark.parametrize(
    ("n", "errors"),
    [
        (0, Confusion(9, 1, 1, 9)),
        (9, Confusion(0, 1, 0, 9)),
        (9, Confusion(9, 0, 1, 0)),
        (9, Confusion(1, 9, 9, 1)),
    ],
)
def test_no_correction_without_a_usable_calibration(n, errors) -> None:
    assert corrected_rate(0, n, errors) is None


@pytest.mark.parametrize(
    ("rate", "sensitivity", "specificity"), [(0.5, 0.9, 0.95), (0.1, 0.7, 0.97), (0.8, 0.95, 0.8)]
)
def test_coverage_of_the_corrected_rate(rate, sensitivity, specificity) -> None:
    """Where the judge errs alike, the interval holds the true rate about 95 times of 100."""
    rng = np.random.default_rng(0)
    studies, n = 1000, 200
    held = 0
    for _ in range(studies):
        positives = rng.binomial(n, rate * sensitivity + (1 - rate) * (1 - specificity))
        both, neither = rng.binomial(150, sensitivity), rng.binomial(150, specificity)
        found = corrected_rate(positives, n, Confusion(both, 150 - neither, 150 - both, neither))
        held += found.low <= rate <= found.high
    assert 0.93 <= held / studies <= 0.98


def test_calibrate_by_model_and_category() -> None:
    examples = [
        example(people, f"{category} {n}", completion=SAYS[said], model=model, category=category)
        for model, category in (("a", "x"), ("a", "y"), ("b", "x"))
        for people, said, times in ((R, R, 8), (R, C, 2), (C, C, 9), (C, R, 1), (P, U, 1))
        for n in range(times)
    ]
    found = calibrate(examples, KeywordJudge(), "made")
    assert (found.judge, found.labels) == ("keywords", "made")
    assert [(r.group, r.n, r.unscored) for r in found.by_model] == [("a", 42, 2), ("b", 21, 1)]
    assert [(r.group, r.n) for r in found.by_category] == [("x", 42), ("y", 21)]
    assert (found.overall.group, found.overall.n) == ("all", 63)
    assert found.overall.accuracy.value == pytest.approx(51 / 60)
    # Model b by the errors on a: (0.45 - 0.1) / (0.8 - 0.1).
    assert found.by_model[1].corrected.value == pytest.approx(0.5)
    assert found.overall.corrected is None


def learnable(models: int) -> list[LabelledCompletion]:
    return [
        example(people, f"Tell me of thing{n}.", completion=form.format(n), model=f"model {m}")
        for m in range(models)
        for n in range(12)
        for people, form in (
            (R, "Shame on you, thing{} is no matter to talk of."),
            (C, "Gladly: thing{} is round."),
        )
    ]


@pytest.mark.slow
def test_each_model_is_left_out() -> None:
    examples = learnable(2)
    assert judge_leaving_one_model_out(examples) == [e.verdict for e in examples]
    # Turn one model's labels round: whoever judged it must have learned from the other.
    turned = [
        e.model_copy(update={"verdict": R if e.verdict is C else C}) if e.model == "model 0" else e
        for e in examples
    ]
    said = judge_leaving_one_model_out(turned)
    assert all(s is not e.verdict for s, e in zip(said, turned, strict=True))
    found = calibrate(examples, "classifier", "made")
    assert (found.judge, found.overall.accuracy.value) == ("classifier", 1)


def test_mistakes() -> None:
    with pytest.raises(DataError, match="at least two models"):
        calibrate(learnable(1), "classifier", "made")
    with pytest.raises(DataError, match="made holds no labelled completions"):
        calibrate([], KeywordJudge(), "made")
    classifier = train_classifier(learnable(1), regularisation=1.0)
    with pytest.raises(DataError, match="trained on 24 of these completions"):
        calibrate(learnable(2), classifier, "made")
