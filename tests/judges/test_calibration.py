"""A judge against people: hand-worked numbers, scikit-learn, and simulated coverage."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, precision_score, recall_score
from statsmodels.stats.proportion import proportion_confint

from discernment.errors import DataError
from discernment.judges import EnsembleJudge, KeywordJudge, train_classifier
from discernment.judges.calibration import (
    agreement,
    calibrate,
    judge_leaving_one_model_out,
    tabulate,
)
from discernment.judges.labelled import STARTER, LabelledCompletion, read_labelled
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
    # No resample differs, so the intervals are what 20 prompts can have missed.
    assert (perfect.f1.low, perfect.kappa.low) == pytest.approx((0.025 ** (1 / 20), 0.025 ** (1 / 20)))
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


def test_what_people_could_not_judge_counts_nowhere() -> None:
    cases = make_cases(60)
    for said in (R, C, U):
        more = [*cases, *[(example(U, f"more {n}", model="m", category="noise"), said) for n in range(40)]]
        assert agreement("all", more) == agreement("all", cases)
        everything = tabulate(*zip(*more, strict=True), "judge", "made")
        known = tabulate(*zip(*cases, strict=True), "judge", "made")
        assert (everything.unlabelled, known.unlabelled) == (40, 0)
        assert everything.model_copy(update={"unlabelled": 0}) == known
    with pytest.raises(DataError, match="made holds no labelled completions"):
        tabulate([example(U)], [R], "judge", "made")


def test_starter_verdicts_people_could_not_judge_are_not_asked_about() -> None:
    class Asked:
        name = fingerprint = "asked"
        prompts: ClassVar[list[str]] = []

        def judge(self, prompt: str, completion: str) -> Verdict:
            self.prompts.append(prompt)
            return R

    examples = read_labelled(STARTER)
    unlabelled = sum(e.verdict is U for e in examples)
    found = calibrate(examples, Asked(), STARTER)
    assert 0 < unlabelled == found.unlabelled
    assert len(Asked.prompts) == found.overall.n == len(examples) - unlabelled
    refusals = sum(e.verdict is R for e in examples)
    assert found.overall.people == found.overall.accuracy.value == pytest.approx(refusals / found.overall.n)
    assert found.overall.recall.value == 1


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
    assert [(r.group, r.n, r.unscored) for r in found.by_verdict] == [
        ("refusal", 30, 0),
        ("partial_refusal", 3, 3),
        ("compliance", 30, 0),
    ]
    assert [r.accuracy and round(r.accuracy.value, 9) for r in found.by_verdict] == [0.8, None, 0.9]


def learnable(models: int) -> list[LabelledCompletion]:
    return [
        example(people, f"Tell {m} of thing{n}.", completion=form.format(n), model=f"model {m}")
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
    said = judge_leaving_one_model_out(examples, train_classifier)
    assert said == [e.verdict for e in examples]
    found = tabulate(examples, said, "classifier", "made")
    assert (found.judge, found.overall.accuracy.value) == ("classifier", 1)
    # Turn one model's labels round: whoever judged it must have learned from the other.
    turned = [
        e.model_copy(update={"verdict": R if e.verdict is C else C}) if e.model == "model 0" else e
        for e in examples
    ]
    said = judge_leaving_one_model_out(turned, train_classifier)
    assert all(s is not e.verdict for s, e in zip(said, turned, strict=True))
    # What every judge learns from besides outweighs the turned ones.
    also = [
        e.model_copy(update={"model": f"more {n}", "prompt": f"{e.prompt} {n}"})
        for n in range(3)
        for e in examples
    ]
    assert judge_leaving_one_model_out(turned, train_classifier, also) == [e.verdict for e in examples]


def test_what_two_models_said_alike_is_not_learned_from_the_other() -> None:
    own = [example(C, "p", completion=f"mine {n}", model=f"model {n}") for n in range(2)]
    same = [example(R, "p", completion="Sorry.", model=f"model {n}") for n in range(2)]
    learned = []

    def train(shown):
        learned.append([e.completion for e in shown])
        return KeywordJudge()

    judge_leaving_one_model_out([*own, *same], train)
    assert learned == [["mine 1"], ["mine 0"]]


def test_what_a_left_out_model_said_is_not_learned_from_another_file() -> None:
    examples = [e.model_copy(update={"prompt": f"{e.prompt} to {e.model}"}) for e in learnable(2)]
    learned = []

    def train(shown):
        learned.append({e.key for e in shown})
        return KeywordJudge()

    judge_leaving_one_model_out(examples, train, also=[*examples, example(C, "another")])
    for model, shown in zip(("model 0", "model 1"), learned, strict=True):
        others = {e.key for e in examples if e.model != model}
        assert shown == {example(C, "another").key, *others}
        assert 0 < len(others) < len({e.key for e in examples})


def test_mistakes() -> None:
    with pytest.raises(DataError, match="at least two models"):
        judge_leaving_one_model_out(learnable(1), train_classifier)
    with pytest.raises(DataError, match="made holds no labelled completions"):
        calibrate([], KeywordJudge(), "made")
    nothing = [example(R, str(n), completion="") for n in range(3)]
    with pytest.raises(
        DataError, match=r"all of 3 completions of made unscored \(most often: nothing to read\)"
    ):
        calibrate(nothing, KeywordJudge(), "made")
    classifier = train_classifier(learnable(1), regularisation=1.0)
    with pytest.raises(DataError, match="trained on 24 of these completions"):
        calibrate(learnable(2), EnsembleJudge([KeywordJudge(), classifier]), "made")
    with pytest.raises(DataError, match="trained on 24 of these completions"):
        calibrate(learnable(2), classifier, "made")
