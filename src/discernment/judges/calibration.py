"""How far a judge can be believed: its verdicts against people's.

Everything here is about `refusal` against the rest. A completion that the judge left unscored is counted and
otherwise left out; one that people could not judge says nothing of the judge, and is no part of the group.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from discernment.errors import DataError
from discernment.frozen import Frozen
from discernment.judges.labelled import LabelledCompletion
from discernment.judges.verdict import Judge, Verdict, judge_all, most_often
from discernment.statistics.intervals import (
    ANY_RATE,
    FEWEST_CLUSTERS,
    RESAMPLES,
    Interval,
    percentile_bootstrap,
    widened,
    wilson,
)

ALL = "all"
ANY_KAPPA = Interval(-1.0, 1.0)
BATCH = 200
"""How many resamples are held at once."""
Floats = npt.NDArray[np.float64]
Training = Callable[[Sequence[LabelledCompletion]], Judge]


class Estimate(Frozen):
    """A number with its 95 % interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Agreement(Frozen):
    """How a judge agrees with people on one group of completions.

    Attributes:
        group: Which completions: a model, a type of prompt, or `all`.
        n: How many that people could judge.
        unscored: How many of them the judge left unscored; they are in none of the other numbers.
        people: Share that people call a refusal.
        judge: Share that the judge calls one: the raw rate.
        accuracy: Share on which both agree.
        precision: Share of the judge's refusals that are people's; None if it has none.
        recall: Share of people's refusals that are the judge's; None if there are none.
        f1: Harmonic mean of both.
        kappa: Cohen's kappa; None if people always say the same.
    """

    group: str
    n: int
    unscored: int
    people: float | None
    judge: Estimate | None
    accuracy: Estimate | None
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None
    kappa: Estimate | None


class Calibration(Frozen):
    """A judge against people.

    Attributes:
        judge: The judge's name.
        labels: Where people's verdicts come from.
        overall: On all completions.
        by_model: On each model's.
        by_category: On each type of prompt.
        by_verdict: On the completions that people call refusals, partial refusals and compliance; accuracy is the share
            of them that the judge puts on the right side.
        unlabelled: Completions that people could not judge (`unscored`); they are in no group.
        reasons: Why the judge left completions unscored, and how many, where it says so.
    """

    judge: str
    labels: str
    overall: Agreement
    by_model: list[Agreement]
    by_category: list[Agreement]
    by_verdict: list[Agreement] = Field(default_factory=list)
    unlabelled: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)


class Confusion(NamedTuple):
    """Counts of refusals: by both, by the judge alone, by people alone, by none."""

    both: int
    judge_only: int
    people_only: int
    neither: int


class _Case(NamedTuple):
    example: LabelledCompletion
    said: Verdict

    @property
    def people(self) -> bool:
        return self.example.verdict is Verdict.REFUSAL

    @property
    def judge(self) -> bool:
        return self.said is Verdict.REFUSAL


def judge_leaving_one_model_out(
    examples: Sequence[LabelledCompletion],
    train: Training,
    also: Sequence[LabelledCompletion] = (),
    progress: Callable[[str], None] | None = None,
) -> list[Verdict]:
    """The verdicts of trained judges, each on the one model that it was not trained on.

    Args:
        examples: Completions of at least two models.
        train: Makes a judge from completions.
        also: What every one of them is trained on as well.
        progress: Called with the name of the model that is left out.

    Raises:
        DataError: If they are all of one model.
    """
    models = list(dict.fromkeys(e.model for e in examples))
    if len(models) < 2:
        raise DataError(
            "Leaving one model out needs completions of at least two models; add another model's."
        )
    verdicts = [Verdict.UNSCORED] * len(examples)
    for model in models:
        if progress is not None:
            progress(model)
        held_out = [n for n, e in enumerate(examples) if e.model == model]
        asked = {examples[n].key for n in held_out}
        # The same reply may be another model's, or stand in a file that holds the examples, too.
        known = (*also, *(e for e in examples if e.model != model))
        judge = train([e for e in known if e.key not in asked])
        said = judge_all(judge, [(examples[n].prompt, examples[n].completion) for n in held_out])
        for n, judgement in zip(held_out, said, strict=True):
            verdicts[n] = judgement.verdict
    return verdicts


def calibrate(examples: Sequence[LabelledCompletion], judge: Judge, labels: str) -> Calibration:
    """Measure a judge against people.

    Args:
        examples: Completions with people's verdicts; the judge is not asked about those that people left `unscored`.
        judge: The judge.
        labels: What to call the examples.

    Raises:
        DataError: If there is nothing to measure with, the judge was trained on some of it, or it leaves everything
            unscored.
    """
    trained_on: frozenset[str] = getattr(judge, "trained_on", frozenset())
    if known := {e.key for e in examples} & trained_on:
        raise DataError(
            f"The {judge.name} was trained on {len(known)} of these completions, so it would look better than it "
            "is; measure it on others, or use `--judge classifier` or `--judge encoder`, which leave each model out."
        )
    asked = [(e.prompt, e.completion) for e in examples if _is_labelled(e)]
    found = judge_all(judge, asked)
    if found and all(judgement.verdict is Verdict.UNSCORED for judgement in found):
        raise DataError(
            f"{judge.name} left all of {len(found)} completions of {labels} unscored{most_often(found)}; mend the judge "
            "or take another one."
        )
    rest = iter(found)
    said = [next(rest).verdict if _is_labelled(e) else Verdict.UNSCORED for e in examples]
    reasons = Counter(j.reason for j in found if j.verdict is Verdict.UNSCORED and j.reason)
    return tabulate(examples, said, judge.name, labels).model_copy(
        update={"reasons": dict(reasons.most_common())}
    )


def _is_labelled(example: LabelledCompletion) -> bool:
    return example.verdict is not Verdict.UNSCORED


def tabulate(
    examples: Sequence[LabelledCompletion], said: Sequence[Verdict], judge: str, labels: str
) -> Calibration:
    """What a judge said, against people: on all completions, by model, by type of prompt and by people's verdict.

    Args:
        examples: Completions with people's verdicts.
        said: The judge's, in the same order.
        judge: What to call the judge.
        labels: What to call the examples.

    Raises:
        DataError: If there is nothing to measure with.
    """
    cases = [_Case(e, verdict) for e, verdict in zip(examples, said, strict=True) if _is_labelled(e)]
    if not cases:
        raise DataError(f"{labels} holds no labelled completions.")
    models = list(dict.fromkeys(case.example.model for case in cases))
    categories = sorted({case.example.category for case in cases if case.example.category is not None})
    said_by_people = {case.example.verdict for case in cases}
    return Calibration(
        judge=judge,
        labels=labels,
        overall=agreement(ALL, cases),
        by_model=[agreement(m, [case for case in cases if case.example.model == m]) for m in models],
        by_category=[
            agreement(c, [case for case in cases if case.example.category == c]) for c in categories
        ],
        by_verdict=[
            agreement(verdict.value, [case for case in cases if case.example.verdict is verdict])
            for verdict in Verdict
            if verdict in said_by_people
        ],
        unlabelled=len(examples) - len(cases),
    )


def agreement(group: str, cases: Iterable[tuple[LabelledCompletion, Verdict]]) -> Agreement:
    """The agreement of a judge with people on `(completion, what the judge said)`, where people could judge.

    Rates have Wilson's interval; F1 and kappa a percentile bootstrap that draws prompts, so that the replies of
    several models to one prompt stay together.
    """
    everything = [case for case in map(_Case._make, cases) if _is_labelled(case.example)]
    scored = [case for case in everything if case.said is not Verdict.UNSCORED]
    counts = _count(scored)
    f1, kappa = _resampled(scored)
    n = len(scored)
    return Agreement(
        group=group,
        n=len(everything),
        unscored=len(everything) - n,
        people=(counts.both + counts.people_only) / n if n else None,
        judge=_rate(counts.both + counts.judge_only, n),
        accuracy=_rate(counts.both + counts.neither, n),
        precision=_rate(counts.both, counts.both + counts.judge_only),
        recall=_rate(counts.both, counts.both + counts.people_only),
        f1=f1,
        kappa=kappa,
    )


def _count(cases: Iterable[_Case]) -> Confusion:
    said = [(case.people, case.judge) for case in cases]
    return Confusion(
        both=said.count((True, True)),
        judge_only=said.count((False, True)),
        people_only=said.count((True, False)),
        neither=said.count((False, False)),
    )


def _rate(successes: int, n: int) -> Estimate | None:
    interval = wilson(successes, n)
    return interval and Estimate(value=successes / n, low=interval.low, high=interval.high)


def _resampled(cases: Sequence[_Case]) -> tuple[Estimate | None, Estimate | None]:
    """F1 and kappa with intervals; None if people always say the same."""
    if len({case.people for case in cases}) < 2:
        return None, None
    by_prompt: dict[str, list[_Case]] = {}
    for case in cases:
        by_prompt.setdefault(case.example.prompt, []).append(case)
    counts = np.array([_count(of_prompt) for of_prompt in by_prompt.values()], dtype=np.float64)

    def statistic(*drawn: Floats, axis: int) -> Floats:
        return _f1_and_kappa(*(of_one.sum(axis=axis) for of_one in drawn))

    values = statistic(*counts.T, axis=0)
    intervals = [ANY_RATE, ANY_KAPPA]
    if len(counts) >= FEWEST_CLUSTERS:
        drawn = percentile_bootstrap(list(counts.T), statistic, 0, RESAMPLES, paired=True, batch=BATCH)
        intervals = [widened(one, limits, len(counts)) for one, limits in zip(drawn, intervals, strict=True)]
    f1, kappa = (
        Estimate(value=float(v), low=interval.low, high=interval.high)
        for v, interval in zip(values, intervals, strict=True)
    )
    return f1, kappa


def _f1_and_kappa(both: Floats, judge_only: Floats, people_only: Floats, neither: Floats) -> Floats:
    """Shape (2, ...); 0 where a resample leaves it undefined."""
    n = both + judge_only + people_only + neither
    people, judge = (both + people_only) / n, (both + judge_only) / n
    by_chance = people * judge + (1 - people) * (1 - judge)
    kappa = _ratio((both + neither) / n - by_chance, 1 - by_chance)
    return np.stack([_ratio(2 * both, 2 * both + judge_only + people_only), kappa])


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
