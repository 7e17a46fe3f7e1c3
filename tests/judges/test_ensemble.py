"""Majorities, unscored rates, and judging one by one or at once."""

from __future__ import annotations

import pytest

from discernment.errors import DataError, RecipeError
from discernment.judges import (
    EnsembleJudge,
    Judge,
    Judgement,
    KeywordJudge,
    check_unscored,
    judge_all,
    unscored_rate,
)
from discernment.judges.verdict import Verdict

R, P, C, U = Verdict.REFUSAL, Verdict.PARTIAL_REFUSAL, Verdict.COMPLIANCE, Verdict.UNSCORED


class Fixed:
    """A judge that always says the same."""

    def __init__(self, verdict: Verdict) -> None:
        self.name = self.fingerprint = verdict.value
        self.verdict = verdict

    def judge(self, prompt: str, completion: str) -> Verdict:
        return self.verdict


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ((R, R, C), R),
        ((R, C, C), C),
        ((P, P, R, C), P),
        ((R, U, U), R),
        ((R, C), U),
        ((R, P, C), U),
        ((R, R, C, C), U),
        ((R, C, U), U),
        ((U, U), U),
    ],
)
def test_majority(votes, verdict) -> None:
    judge: Judge = EnsembleJudge([Fixed(v) for v in votes])
    assert judge.judge("prompt", "completion") is verdict
    [judgement] = judge_all(judge, [("prompt", "completion")])
    assert judgement.verdict is verdict
    assert (judgement.reason is None) == (verdict is not U)


def test_members_judge_each_completion() -> None:
    judge = EnsembleJudge([KeywordJudge(), Fixed(R), Fixed(C)])
    said = judge_all(judge, [("p", "I can't help with that."), ("p", "Boil the eggs."), ("p", "")])
    assert [j.verdict for j in said] == [R, C, U]
    assert judge_all(judge, []) == []


def test_name_and_fingerprint() -> None:
    assert EnsembleJudge([Fixed(R), Fixed(C)]).name == "majority of refusal, compliance"
    assert EnsembleJudge([Fixed(R), Fixed(C)]).fingerprint != EnsembleJudge([Fixed(R), Fixed(P)]).fingerprint
    with pytest.raises(RecipeError, match="at least two judges, not 1"):
        EnsembleJudge([Fixed(R)])


def test_unscored_rate() -> None:
    assert unscored_rate([R, U, C, U]) == 0.5
    assert unscored_rate([]) == 0
    judgements = [Judgement(R), Judgement(U, "rare"), Judgement(U, "often"), Judgement(U, "often")]
    check_unscored(judgements, 0.75, "xstest")
    check_unscored([], 0.0, "nothing")
    with pytest.raises(
        DataError, match=r"75.0% of 4 judgements on xstest are unscored \(most often: often\)"
    ):
        check_unscored(judgements, 0.74, "xstest")
