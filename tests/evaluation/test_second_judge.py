"""Two judges on the same replies: hand-counted differences, and what is refused."""

import pytest

from discernment.errors import DataError
from discernment.evaluation.sample import Draw, Sample
from discernment.evaluation.second_judge import (
    SecondVerdict,
    disagreements,
    judge_again,
    judge_difference,
    read_second_verdicts,
)
from discernment.judges import KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

LETTERS = {v.value[0]: v for v in Verdict}
NAMES = {"method": "dcr", "judge": "a", "second_judge": "b"}


def replies(first, second):
    samples = [
        Sample(
            prompt_id=str(n), benchmark="b", label=Label.TOXIC, prompt=f"prompt {n}", completion=f"reply {n}",
            finished=True, verdict=LETTERS[letter],
        )
        for n, letter in enumerate(first)
    ]  # fmt: skip
    said = [
        SecondVerdict(benchmark="b", prompt_id=str(n), draw=0, verdict=LETTERS[letter])
        for n, letter in enumerate(second)
    ]
    return samples, said


def test_differences_are_those_counted_by_hand():
    samples, second = replies("rrrrppccccu", "rrrcprcccuc")
    found = judge_difference(samples, second, **NAMES)
    assert (found.method, found.judge, found.second_judge) == ("dcr", "a", "b")
    assert (found.replies, found.unscored) == (9, 2)
    assert (found.differ, found.refusals, found.second_refusals) == (2, 1, 1)
    # Refusal against the rest, of nine: 3 by both, 1 and 1 by one, 4 by none; by chance 4/9 * 4/9 + 5/9 * 5/9 = 41/81.
    assert found.kappa == pytest.approx((7 / 9 - 41 / 81) / (1 - 41 / 81))
    assert [(d.sample.prompt_id, d.completion) for d in disagreements(samples, second)] == [
        ("3", "reply 3"),
        ("5", "reply 5"),
    ]
    assert [d.verdicts for d in disagreements(samples, second)] == [
        (Verdict.REFUSAL, Verdict.COMPLIANCE),
        (Verdict.PARTIAL_REFUSAL, Verdict.REFUSAL),
    ]


def test_kappa_is_left_out_where_nobody_refuses():
    found = judge_difference(*replies("ccp", "cpp"), **NAMES)
    assert (found.differ, found.kappa) == (1, None)
    assert judge_difference(*replies("uu", "cr"), **NAMES).replies == 0


def test_verdicts_on_other_replies_are_refused():
    samples, second = replies("rc", "rc")
    with pytest.raises(DataError, match="not on these replies"):
        judge_difference(samples, second[:1], **NAMES)


class Listening(KeywordJudge):
    """Keeps the prompts that it is shown."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def judge(self, prompt, completion):
        self.heard.append(prompt)
        return super().judge(prompt, completion)


class NobodyIsAsked:
    name = fingerprint = "nobody"

    def judge(self, prompt, completion):
        raise AssertionError("there is no reply")


def test_every_draw_is_judged_and_read_back(tmp_path):
    samples, _ = replies("cr", "cr")
    further = Draw(completion="I'm sorry, but I can't help with that.", finished=True, verdict="compliance")
    samples[1] = samples[1].model_copy(update={"further": (further,)})
    told = []
    found = judge_again(samples, KeywordJudge(), tmp_path, lambda *said: told.append(said))
    assert [(row.key, row.verdict.value) for row in found] == [
        (("b", "0", 0), "compliance"),
        (("b", "1", 0), "compliance"),
        (("b", "1", 1), "refusal"),
    ]
    assert told == [("second judgements", 3, 3)]
    unasked = samples[0].model_copy(
        update={"completion": "", "verdict": Verdict.UNSCORED, "unscored_reason": "too long"}
    )
    [nothing] = judge_again([unasked], NobodyIsAsked(), tmp_path)
    assert (nothing.verdict, nothing.unscored_reason) == (Verdict.UNSCORED, "too long")
    failed = Draw(completion="", finished=False, verdict="unscored", unscored_reason="the endpoint failed")
    [_, drawn] = judge_again([samples[0].model_copy(update={"further": (failed,)})], KeywordJudge(), tmp_path)
    assert (drawn.verdict, drawn.unscored_reason) == (Verdict.UNSCORED, "the endpoint failed")
    cut = samples[0].model_copy(update={"cut": "the end of it"})
    judge_again([cut, samples[1]], judge := Listening(), tmp_path)
    assert judge.heard == ["the end of it", "prompt 1", "prompt 1"]
    found = judge_again(samples, KeywordJudge(), tmp_path)
    assert read_second_verdicts(tmp_path / "verdicts.jsonl") == found
    assert [d.completion for d in disagreements(samples, found)] == ["reply 1", further.completion]
    (tmp_path / "verdicts.jsonl").write_text('{"benchmark": "b"}\n')
    with pytest.raises(DataError, match="line 1, is not a verdict"):
        read_second_verdicts(tmp_path / "verdicts.jsonl")
