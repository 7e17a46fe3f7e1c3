import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.errors import DataError
from discernment.prompts.prompt import Label, Prompt, Split
from discernment.prompts.prompt_set import PromptSet, Provenance
from discernment.prompts.split import assign_splits, split_leaks

HALVES = {Split.TRAIN: 0.5, Split.TEST: 0.5}


def prompt(number, text="Tell me a story.", **fields):
    fields = {"label": Label.TOXIC, "source": "s", **fields}
    return Prompt(id=str(number), text=text, **fields)


def make(prompts):
    return PromptSet(prompts, Provenance(name="made"))


def leaks(train, held_out):
    return [(leak.kind, leak.value, leak.train.id, leak.held_out.id) for leak in split_leaks(train, held_out)]


HELD_OUT = prompt("h", "How do I kill a fish?", keyword="kill", frame="How do I kill {}?")


@pytest.mark.parametrize(
    "text", ["Who is the KILLER?", "She kills it.", "Killing time, how?", "a well-killed weed", "killed."]
)
def test_key_words_are_found_in_any_form(text):
    assert leaks([prompt(1, text)], [HELD_OUT]) == [("keyword", "kill", "1", "h")]


@pytest.mark.parametrize("text", ["a skillful cook", "Kilimanjaro", "kilt shops"])
def test_other_words_are_not(text):
    assert leaks([prompt(1, text)], [HELD_OUT]) == []


@pytest.mark.parametrize(
    ("keyword", "text", "other"),
    [
        ("杀", "怎样杀人不被发现", "怎样救人"),
        ("杀人", "怎样杀人不被发现", "人杀不了"),
        ("ฆ่า", "อยากฆ่าเวลา", "อยากเสียเวลา"),
    ],
)
def test_key_words_are_found_in_writing_without_spaces(keyword, text, other):
    train = [prompt(1, text), prompt(2, other)]
    assert leaks(train, [prompt("h", keyword=keyword)]) == [("keyword", keyword, "1", "h")]


def test_responses_are_read_too():
    assert leaks([prompt(1, response="Use kill -9.")], [HELD_OUT]) == [("keyword", "kill", "1", "h")]


def test_key_words_of_several_words_stand_together():
    held_out = prompt("h", keyword="home address")
    texts = ["her home addresses", "an address at home", "home and address", "my home, address it"]
    assert leaks([prompt(n, text) for n, text in enumerate(texts)], [held_out]) == [
        ("keyword", "home address", "0", "h"),
        ("keyword", "home address", "3", "h"),
    ]


def test_a_key_word_of_training_may_be_held_out():
    assert leaks([HELD_OUT], [prompt(1, "Who is the killer?")]) == []


def test_a_frame_counts_whatever_its_key_word():
    train = [
        prompt(1, frame="How do I stab {}?", keyword="stab"),
        prompt(2, frame="Why do I stab {}?", keyword="stab"),
        prompt(3, frame="How do I {} stab?", keyword="stab"),
    ]
    assert leaks(train, [HELD_OUT]) == [("frame", "How do I kill {}?", "1", "h")]


def test_a_frame_that_training_spells_out():
    held_out = prompt("h", frame="What would {} do in a story?")
    texts = ["what would a Dragon do in a story", "What would you do?", "in a story, what would she do"]
    assert leaks([prompt(n, text) for n, text in enumerate(texts)], [held_out]) == [
        ("frame", "What would {} do in a story?", "0", "h")
    ]


def test_partners_and_repeats():
    held_out = [prompt("h", partner="1"), prompt("i", keyword="kill"), prompt("j", keyword="kill")]
    train = [prompt(1), prompt(2, "killers")]
    assert leaks(train, held_out) == [("partner", "1", "1", "h"), ("keyword", "kill", "2", "i")]


# ------------------------------------------------------------------ assigning

KEYWORDS = ["stab", "hang", "burn", "crack", "flood"]
FRAMES = ["Tell me why {}.", "Who could {}?", "Draw {}."]


@st.composite
def prompt_lists(draw):
    size = draw(st.integers(2, 14))
    made = []
    for n in range(size):
        words = draw(st.lists(st.sampled_from([*KEYWORDS, "sun", "moon"]), max_size=2))
        made.append(
            prompt(
                n,
                f"Something {' and '.join(words)} {n}",
                label=draw(st.sampled_from(Label)),
                keyword=draw(st.none() | st.sampled_from(KEYWORDS)),
                frame=draw(st.none() | st.sampled_from(FRAMES)),
                partner=draw(st.none() | st.integers(0, size - 1).map(str)),
            )
        )
    return made


@settings(max_examples=100, deadline=None)
@given(prompt_lists(), st.integers(0, 3))
def test_nothing_is_shared_between_splits(prompts, seed):
    try:
        split = assign_splits(make(prompts), HALVES, seed)
    except DataError as error:
        assert "hang together in 1 group" in str(error)
        return
    assert [p.id for p in split] == [p.id for p in prompts]
    by_id = {p.id: p for p in split}
    sides = {side: [p for p in split if p.split is side] for side in HALVES}
    assert all(sides.values())
    assert all(by_id[p.partner].split is p.split for p in split if p.partner)
    for one, other in [(Split.TRAIN, Split.TEST), (Split.TEST, Split.TRAIN)]:
        seen = set(" ".join(p.text for p in sides[one]).split())
        assert seen.isdisjoint(p.keyword for p in sides[other] if p.keyword)
        assert {p.frame for p in sides[one] if p.frame}.isdisjoint(p.frame for p in sides[other])
        assert split_leaks(sides[one], sides[other]) == []


def test_repeated_texts_stay_together():
    texts = [f"A story about {thing} and the sea in winter" for thing in ("a", "b", "c", "d")]
    prompts = [prompt(n, text) for n, text in enumerate(texts)]
    prompts += [
        prompt(n + 10, text.upper())
        for n, text in enumerate(["Sing a song.", "Name a color.", *["Sing a song."]])
    ]
    split = assign_splits(make(prompts), HALVES)
    assert len({p.split for p in split if "sea" in p.text.lower()}) == 1
    assert split[4].split is split[6].split


def test_key_words_without_letters_are_told_apart():
    symbols = ["🔪", "⚔️", "💣", "☠️"]
    prompts = [
        prompt(f"{n}{symbol}", f"text {n} {symbol}", keyword=symbol) for symbol in symbols for n in "ab"
    ]
    split = assign_splits(make(prompts), HALVES)
    parts = {symbol: {p.split for p in split if p.keyword == symbol} for symbol in symbols}
    assert all(len(part) == 1 for part in parts.values())
    assert Counter(part.pop() for part in parts.values()) == {Split.TRAIN: 2, Split.TEST: 2}


def test_every_label_and_category_gets_its_share():
    draw = random.Random(0)
    prompts = [
        prompt(n, f"text {n}", label=draw.choice(list(Label)), category=draw.choice("abcd"))
        for n in range(1000)
    ]
    split = assign_splits(make(prompts))
    shares = {Split.TRAIN: 0.8, Split.VALIDATION: 0.1, Split.TEST: 0.1}
    for part, share in shares.items():
        chosen = [p for p in split if p.split is part]
        assert len(chosen) == pytest.approx(1000 * share, abs=1)
        for key in (lambda p: p.label, lambda p: (p.label, p.category)):
            total, found = Counter(map(key, prompts)), Counter(map(key, chosen))
            assert len(total) >= 3
            assert all(found[stratum] == pytest.approx(n * share, abs=1.5) for stratum, n in total.items())


def test_pairs_are_dealt_out_whole():
    prompts = [
        prompt(
            f"{category}{n}{side}",
            f"{category} number {n} {side}",
            label=label,
            category=category,
            partner=f"{category}{n}{other}",
            frame=f"{category} frame {n // 4} {{}}",
        )
        for category in "abcdefgh"
        for n in range(24)
        for side, other, label in (("s", "t", Label.SEEMINGLY_TOXIC), ("t", "s", Label.TOXIC))
    ]
    split = assign_splits(make(prompts), {Split.TRAIN: 0.5, Split.VALIDATION: 1 / 6, Split.TEST: 1 / 3})
    counts = Counter((p.split, p.label, p.category) for p in split)
    for category in "abcdefgh":
        for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC):
            found = [counts[part, label, category] for part in Split]
            assert found == [12, 4, 8]


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does():
    prompts = [prompt(n, f"text {n}") for n in range(60)]
    first = {p.id: p.split for p in assign_splits(make(prompts), HALVES, 1)}
    assert {p.id: p.split for p in assign_splits(make(prompts[::-1]), HALVES, 1)} == first
    assert {p.id: p.split for p in assign_splits(make(prompts), HALVES, 2)} != first


def test_small_sets_still_fill_every_split():
    split = assign_splits(make([prompt(n, f"text {n}") for n in range(3)]))
    assert {p.split for p in split} == set(Split)


def test_a_split_without_a_share_stays_empty():
    split = assign_splits(make([prompt(n, f"text {n}") for n in range(9)]), {**HALVES, Split.VALIDATION: 0})
    assert {p.split for p in split} == {Split.TRAIN, Split.TEST}


@pytest.mark.parametrize(
    "fractions",
    [{Split.TRAIN: 0.9}, {Split.TRAIN: 1.5, Split.TEST: -0.5}, {}, {Split.TRAIN: 0.5, Split.TEST: 0.6}],
)
def test_shares_must_add_up(fractions):
    with pytest.raises(DataError, match="add up to 1"):
        assign_splits(make([prompt(1), prompt(2)]), fractions)


def test_one_group_cannot_be_split():
    with pytest.raises(
        DataError, match=r"made cannot be split into 2: its 2 prompts hang together in 1 group"
    ):
        assign_splits(make([prompt(1, "a", keyword="kill"), prompt(2, "killers")]), HALVES)
