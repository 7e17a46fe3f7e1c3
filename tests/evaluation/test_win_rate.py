"""A win counts in both orders: a judge that looks at the position gives one half, a known winner wins."""

import pytest

from discernment.errors import DataError
from discernment.evaluation.sample import Sample
from discernment.evaluation.win_rate import win_rate
from discernment.files import read_json_lines
from discernment.prompts import Label, Turn


def samples(completions, **more):
    return [
        Sample(
            prompt_id=str(n),
            benchmark="made",
            label=Label.BENIGN,
            prompt=f"prompt {n}",
            completion=text,
            finished=True,
            verdict="compliance",
            **more,
        )
        for n, text in enumerate(completions)
    ]


class Said:
    """Answers by a rule and counts the questions."""

    def __init__(self, rule):
        self.rule, self.questions = rule, []
        self.name = self.fingerprint = "said"

    @property
    def asked(self):
        return len(self.questions)

    def compare(self, prompt, a, b):
        self.questions.append(prompt)
        return self.rule(prompt, a, b)


def names(**more):
    return {"method": "dcr", "against": "stl", **more}


GOOD = samples([f"good {n}" for n in range(20)])
BAD = samples([f"bad answer {n}" for n in range(20)])


@pytest.mark.parametrize("place", ["a", "b"])
def test_a_judge_that_looks_at_the_position_gives_one_half(place):
    found = win_rate(GOOD, BAD, Said(lambda *_: place), **names())
    missed = 1 - 0.025 ** (1 / 20)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - missed, 0.5 + missed))
    assert (found.wins, found.ties, found.losses, found.reversed) == (0, 20, 0, 20)


def test_a_reply_that_never_came_loses_nothing_and_one_like_the_other_is_a_tie():
    failed = samples([""] * 10, unscored_reason="the endpoint failed")
    ours = [*GOOD[:5], *failed[5:10], *BAD[10:]]
    judge = Said(lambda prompt, a, b: "a" if a.startswith("good") else "b")
    found = win_rate(ours, BAD, judge, **names())
    assert (found.wins, found.ties, found.losses, found.unscored, found.reversed) == (5, 10, 0, 5, 0)
    assert judge.asked == 2 * 5


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_known_winner_wins(concurrency):
    judge = Said(lambda _, a, b: "a" if a.startswith("good") else "b")
    found = win_rate(GOOD, BAD, judge, **names(concurrency=concurrency))
    assert (found.value, found.low, found.high) == (1, pytest.approx(0.025 ** (1 / 20)), 1)
    assert (found.wins, found.reversed) == (20, 0)
    assert (found.words, found.words_against) == (2, 3)
    assert (found.value_longer, found.value_not_longer, found.longer) == (None, 1, 0)
    lost = win_rate(BAD, GOOD, judge, **names())
    assert (lost.value, lost.losses, lost.value_longer, lost.value_not_longer) == (0, 20, 0, None)
    assert judge.asked == 80


def test_ties_reversals_and_missing_answers_are_told_apart():
    rules = {
        0: ("a", "b"),  # wins
        1: ("a", "tie"),  # only once: a tie
        2: ("tie", "tie"),
        3: ("b", "a"),  # loses
        4: ("a", "unscored"),
        5: ("b", "b"),  # place
    }

    def rule(prompt, a, b):
        first, second = rules[int(prompt.split()[-1])]
        return first if a.startswith("good") else second

    found = win_rate(GOOD[:6], [*BAD[:6], *samples(["x"] * 8)[6:]], Said(rule), **names())
    counts = (found.wins, found.ties, found.losses, found.reversed, found.unscored)
    assert counts == (1, 3, 1, 1, 1)
    assert found.value == (1 + 3 / 2) / 5
    assert (found.low, found.high) == (0, 1)  # fewer than ten prompts


def test_the_interval_is_a_bootstrap_over_prompts():
    judge = Said(lambda prompt, a, b: "a" if (int(prompt.split()[-1]) < 15) == a.startswith("good") else "b")
    found = win_rate(GOOD, BAD, judge, **names())
    assert found.value == 0.75
    assert 0.5 <= found.low < 0.65 and 0.85 < found.high <= 0.95
    framed = [s.model_copy(update={"frame": str(int(s.prompt_id) % 3)}) for s in GOOD]
    clustered = win_rate(framed, BAD, judge, **names())
    assert (clustered.low, clustered.high) == (0, 1)


def test_nothing_is_asked_twice(tmp_path):
    cache = tmp_path / "answers.jsonl"
    broken = Said(lambda prompt, a, b: "unscored" if prompt == "prompt 3" else "tie")
    first = win_rate(GOOD, BAD, broken, **names(cache=cache))
    assert (broken.asked, first.unscored, len(list(read_json_lines(cache)))) == (40, 1, 38)
    cache.write_bytes(cache.read_bytes()[:-5])  # cut off while writing the last line
    mended = Said(lambda *_: "tie")
    again = win_rate(GOOD, BAD, mended, **names(cache=cache))
    assert (mended.asked, again.unscored, again.ties) == (3, 0, 20)
    win_rate(GOOD, BAD, mended, **names(cache=cache))
    assert mended.asked == 3


def test_the_judge_sees_what_was_asked_and_only_the_same_is_compared():
    before = (Turn(role="user", content="Hello."), Turn(role="assistant", content="Hi."))
    ours = [
        samples(["good"], system="You are a nurse.", earlier=before)[0],
        samples(["", "good"], cut="mpt 1")[1],
        samples(["", "", "good"], cut="mpt 2")[2],
        *samples(["", "", "", "good"], system="You are a nurse.")[3:],
        *GOOD[4:],
    ]
    theirs = [s.model_copy(update={"completion": "bad"}) for s in ours]
    theirs[2] = theirs[2].model_copy(update={"cut": "ompt 2"})
    theirs[3] = theirs[3].model_copy(update={"system": None})
    judge = Said(lambda *_: "tie")
    found = win_rate(ours, theirs, judge, **names())
    assert (found.ties, found.unscored) == (18, 0)
    talk = "System: You are a nurse.\n\nUser: Hello.\n\nAssistant: Hi.\n\nUser: prompt 0"
    assert set(judge.questions) == {talk, "mpt 1", *(f"prompt {n}" for n in range(4, 20))}


def test_what_cannot_be_compared_is_said():
    with pytest.raises(DataError, match="dcr and stl have no prompt in common"):
        win_rate(GOOD, [s.model_copy(update={"benchmark": "other"}) for s in BAD], Said(None), **names())
    with pytest.raises(DataError, match="said gave no pair of replies a preference"):
        win_rate(GOOD, BAD, Said(lambda *_: "unscored"), **names())
