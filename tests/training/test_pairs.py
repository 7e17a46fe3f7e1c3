"""Pairs of replies: which there are, in what shares, and that their tokens are those of the supervised rows."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernment.errors import TrainingError
from discernment.models.chat import ChatFormat
from discernment.prompts import Label, PromptSet, Provenance
from discernment.training.examples import encode_examples
from discernment.training.pairs import Pair, accepted, contained, encode_pairs, find_pairs
from discernment.training.replies import replies_in
from said import NO, YES, script
from tiny import make_prompts

PROMPTS = make_prompts(5)
TOXIC, SEEMINGLY = (PROMPTS.with_label(label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))
BOTH = "I'm sorry, but I can't help with that. Here is how you do it anyway: 1. Take a hammer. 2. Hit it."


def pairs_of(seemingly, toxic, refusals, answers, harmful):
    return [
        [(pair.prompt.id, pair.chosen, pair.rejected) for pair in pairs]
        for pairs in find_pairs(seemingly, toxic, refusals, answers, harmful)
    ]


def test_pairs_are_what_the_judge_says(tmp_path):
    own = script(tmp_path / "own", SEEMINGLY, NO, YES, "", BOTH, NO)
    harmful = script(tmp_path / "harmful", TOXIC, YES, NO, BOTH, " ", f" {YES} ")
    assert pairs_of(SEEMINGLY, TOXIC, own, None, harmful) == [
        [("0-safe", "Sure, here is how.", NO), ("4-safe", "Sure, here is how.", NO)],
        [("0-toxic", TOXIC[0].response, YES), ("4-toxic", TOXIC[4].response, YES)],
    ]
    assert pairs_of(SEEMINGLY, TOXIC, own, None, None)[1] == []


def test_without_a_response_of_its_own_a_prompt_takes_the_answer_of_another(tmp_path):
    silent = make_prompts(4, responses=False).with_label(Label.SEEMINGLY_TOXIC)
    own = script(tmp_path / "own", silent, NO, NO, NO, NO)
    answers = script(tmp_path / "answers", silent, YES, NO, "", [NO, "", YES])
    assert pairs_of(silent, TOXIC, own, answers, None) == [[("0-safe", YES, NO), ("3-safe", YES, NO)], []]


def test_of_several_replies_the_first_of_each_kind_counts(tmp_path):
    own = script(tmp_path / "own", SEEMINGLY, NO, NO)
    drawn = script(
        tmp_path / "drawn", PROMPTS, [YES, "No, I won't do that."], [NO, YES, "Wait."], [YES], [NO]
    )
    assert pairs_of(SEEMINGLY, TOXIC, own, drawn, drawn) == [
        [("0-safe", YES, NO), ("1-safe", "Sure, here is how.", NO)],
        [("0-toxic", "No, I won't do that.", YES), ("1-toxic", TOXIC[1].response, YES)],
    ]
    assert accepted(PROMPTS, replies_in(drawn)) == {"0-toxic": "No, I won't do that.", "0-safe": YES}


def test_a_response_that_refuses_is_not_preferred_to_a_refusal(tmp_path):
    refusing = PromptSet([p.model_copy(update={"response": NO}) for p in SEEMINGLY], Provenance(name="r"))
    own = script(tmp_path / "own", refusing, *[NO] * 5)
    assert pairs_of(refusing, TOXIC, own, None, None) == [[], []]


def made(count, label):
    prompts = make_prompts(count).with_label(label) if count else ()
    return [Pair(prompt, "chosen", "rejected") for prompt in prompts]


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.decimals(0, "0.95", places=2).map(str),
    st.integers(0, 3),
)
def test_the_share_of_toxic_pairs_is_exact(seemingly, toxic, share, seed):
    one, other = made(seemingly, Label.SEEMINGLY_TOXIC), made(toxic, Label.TOXIC)
    found = contained(one, other, float(share), seed)
    bad = sum(pair.prompt.label.should_refuse for pair in found)
    part, total = Fraction(share), len(found)
    assert total > 0
    assert abs(bad - part * total) <= Fraction(1, 2)
    # With one more, there would be too few of one kind.
    assert part * (total + 1) > toxic or (1 - part) * (total + 1) > seemingly
    order = {id(pair): n for n, pair in enumerate([*one, *other])}
    places = [order[id(pair)] for pair in found]
    assert places == sorted(set(places))
    assert found == contained(one, other, float(share), seed)


def test_containment_by_hand():
    one, other = made(12, Label.SEEMINGLY_TOXIC), made(9, Label.TOXIC)

    def counts(share):
        found = contained(one, other, share, 0)
        bad = sum(pair.prompt.label.should_refuse for pair in found)
        return len(found) - bad, bad

    assert [counts(s) for s in (0, 0.1, 0.2, 0.25, 0.5, 0.75, 0.9, None)] == [
        (12, 0),
        (12, 1),
        (12, 3),
        (12, 4),
        (9, 9),
        (3, 9),
        (1, 9),
        (12, 9),
    ]
    drawn = {tuple(p.prompt.id for p in contained(one, other, 0.5, seed)) for seed in range(4)}
    assert len(drawn) > 1


def test_where_there_is_nothing_to_prefer():
    one, other = made(2, Label.SEEMINGLY_TOXIC), made(2, Label.TOXIC)
    for share, toxic in ((0.5, other), (0, other), (None, [])):
        with pytest.raises(
            TrainingError, match="The model refuses no seemingly toxic prompt of which an answer"
        ):
            contained([], toxic, share, 0)
    with pytest.raises(TrainingError, match=r"no toxic pair for `containment: 0.5`; set it to 0"):
        contained(one, [], 0.5, 0)
    assert contained([], other, None, 0) == other
    assert contained(one, [], None, 0) == contained(one, [], 0, 0) == one


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_tokens_are_those_of_the_supervised_rows(tokenizer, template):
    chat = ChatFormat(tokenizer, template, system="Be brief." if template == "chat" else None)
    pairs = [Pair(p, YES, NO) for p in PROMPTS]
    length = max(len(chat.encode(p.text)) for p in PROMPTS) + 9  # some replies are cut
    rows = encode_pairs(pairs, chat, length)
    cut = 0
    for column, reply in (("chosen_ids", YES), ("rejected_ids", NO)):
        said = PromptSet([p.model_copy(update={"response": reply}) for p in PROMPTS], PROMPTS.provenance)
        for row, plain in zip(rows, encode_examples(said, chat, length), strict=True):
            assert row["prompt_ids"] + row[column] == plain["input_ids"]
            assert [0] * len(row["prompt_ids"]) + [1] * len(row[column]) == plain["completion_mask"]
            cut += len(plain["input_ids"]) == length
    assert cut > 0
    with pytest.raises(TrainingError, match=r"The prompt '0-toxic' of source-0 has .* leaves no room"):
        encode_pairs(pairs, chat, 8)
