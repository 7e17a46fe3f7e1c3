import itertools
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.prompts.duplicates import Likeness, find_duplicates
from discernment.prompts.prompt import Label, Prompt, Split
from discernment.prompts.prompt_set import PromptSet, Provenance

VOCABULARY = ["how", "do", "i", "kill", "a", "process", "plant", "in", "the", "park", "now", "Linux"]


def make(texts, name="one", **fields):
    prompts = [
        Prompt(id=f"{name}-{n}", text=text, label=Label.TOXIC, source=name, **fields)
        for n, text in enumerate(texts)
    ]
    return PromptSet(prompts, Provenance(name=name))


def found(*sets, **options):
    return {(d.first.id, d.second.id): d.likeness for d in find_duplicates(sets, **options)}


def test_the_three_likenesses():
    sets = make(
        [
            "How do I kill a Python process on Linux?",
            "How do I kill a Python process on Linux?",
            "how do I kill a python process, on Linux",
            "How do I kill a Python process on Linux today?",
            "How do I water the plants on my balcony?",
        ]
    )
    assert found(sets) == {
        ("one-0", "one-1"): Likeness.EXACT,
        ("one-0", "one-2"): Likeness.NORMALISED,
        ("one-0", "one-3"): Likeness.NEAR,
        ("one-1", "one-3"): Likeness.NEAR,
        ("one-2", "one-3"): Likeness.NEAR,
    }
    near = next(d for d in find_duplicates([sets]) if d.likeness is Likeness.NEAR)
    assert near.similarity == pytest.approx(9 / 10)


def test_prompts_without_spaces_are_near_by_their_characters():
    sets = make(["怎样才能在 Linux 上结束进程", "怎样才能在 Linux 上结束进程呢", "怎么给阳台上的植物浇水"])
    assert found(sets) == {("one-0", "one-1"): Likeness.NEAR}
    (near,) = find_duplicates([sets])
    assert near.similarity == pytest.approx(11 / 12)


def test_the_threshold_itself_is_near_enough():
    ten = [f"w{n}" for n in range(10)]
    pair = make([" ".join(ten[:8]), " ".join(ten)])
    assert [d.similarity for d in find_duplicates([pair])] == [0.8]
    assert found(pair, threshold=0.81) == {}
    # 28 of 35 words: in floating point 0.8 * 35 lies above 28.
    many = [f"w{n}" for n in range(35)]
    assert len(found(make([" ".join(many[:28]), " ".join(many)]))) == 1


def test_short_prompts_are_never_near():
    assert found(make(["kill my old dog", "kill my old dog dog"])) == {}
    assert found(make(["kill my old dog", "Kill my old dog."])) == {("one-0", "one-1"): Likeness.NORMALISED}


def test_punctuation_alone_is_no_text():
    assert found(make(["?!", "..."])) == {}


def test_partners_are_near_on_purpose():
    texts = ["How do I kill the process in Linux?", "How do I kill the people in Linux?"]
    assert len(found(make(texts), threshold=0.6)) == 1
    pair = [
        Prompt(id="safe", text=texts[0], label=Label.SEEMINGLY_TOXIC, source="s", partner="toxic"),
        Prompt(id="toxic", text=texts[1], label=Label.TOXIC, source="s"),
    ]
    assert found(PromptSet(pair, Provenance(name="s")), threshold=0.6) == {}
    same = [p.model_copy(update={"text": texts[0]}) for p in pair]
    assert found(PromptSet(same, Provenance(name="s"))) == {("safe", "toxic"): Likeness.EXACT}


def test_sets_and_splits_are_told_apart():
    text = "Tell me a story about the sea."
    train, test = make([text], "a", split=Split.TRAIN), make([text, text], "b", split=Split.TEST)
    across = {
        (d.first.id, d.second.id): (d.across_sets, d.across_splits, d.crosses)
        for d in find_duplicates([train, test])
    }
    assert across == {
        ("a-0", "b-0"): (True, True, True),
        ("a-0", "b-1"): (True, True, True),
    }
    unsplit = find_duplicates([make([text, text])])
    assert [d.across_splits for d in unsplit] == [False]
    first = find_duplicates([train, test])[0]
    assert (first.first_set, first.second_set) == ("a", "b")


@pytest.mark.parametrize(
    "texts", [["Sing a song!"], [f"Sing me a long old song of {n} pence and rye" for n in range(2)]]
)
def test_a_text_that_is_there_many_times_is_reported_once_a_time(texts):
    repeated = [text for text in texts for _ in range(1000)]
    pairs = found(make(repeated))
    equal = {pair for pair, likeness in pairs.items() if likeness is Likeness.EXACT}
    assert equal == {
        (f"one-{first}", f"one-{n}")
        for first in range(0, len(repeated), 1000)
        for n in range(first + 1, first + 1000)
    }
    assert len(equal) <= len(pairs) < 2 * len(repeated)
    assert (Likeness.NEAR in pairs.values()) == (len(texts) > 1)


def test_equal_words_in_many_orders_are_not_all_pairs():
    orders = itertools.islice(itertools.permutations("abcdef"), 400)
    pairs = found(make([" ".join(order) for order in orders]))
    assert pairs == {("one-0", f"one-{n}"): Likeness.NEAR for n in range(1, 400)}


def test_a_group_on_two_sides_is_a_leak_whichever_is_first():
    orders = {*itertools.permutations([None, None, Split.TRAIN, Split.TRAIN, Split.TEST])}
    assert len(orders) == 30
    for order in orders:
        prompts = [
            Prompt(id=str(n), text="Sing a song.", label=Label.TOXIC, source="s", split=split)
            for n, split in enumerate(order)
        ]
        pairs = find_duplicates([PromptSet(prompts, Provenance(name="s"))])
        assert len(pairs) == 4
        assert any(d.crosses for d in pairs)


def brute_force(prompts, threshold):
    pairs = {}
    for a, b in itertools.combinations(prompts, 2):
        words_a, words_b = set(a.text.lower().split()), set(b.text.lower().split())
        similarity = len(words_a & words_b) / len(words_a | words_b)
        if a.text == b.text:
            pairs[a.id, b.id] = "exact"
        elif a.text.lower() == b.text.lower():
            pairs[a.id, b.id] = "normalised"
        elif min(len(words_a), len(words_b)) >= 5 and similarity >= threshold:
            pairs[a.id, b.id] = "near"
    return pairs


def groups(pairs):
    found = []
    for pair in pairs:
        joined = set(pair).union(*(group for group in found if group & set(pair)))
        found = [group for group in found if not group & joined] + [joined]
    return {frozenset(group) for group in found}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12).map(" ".join), min_size=2, max_size=12
    ),
    st.sampled_from([0.5, 0.75, 0.8, 0.9, 1.0]),
    st.integers(0, 12),
)
def test_against_brute_force(texts, threshold, cut):
    sets = [make(texts[:cut], "a"), make(texts[cut:], "b")]
    expected = brute_force([p for s in sets for p in s], threshold)
    pairs = found(*sets, threshold=threshold)
    assert pairs.items() <= expected.items()
    assert groups(pairs) == groups(expected)
    # Whatever repeats something of the other set is reported to.
    assert {b for a, b in pairs if a[0] != b[0]} == {b for a, b in expected if a[0] != b[0]}
    equal = [pair for pair in expected if expected[pair] != "near"]
    members = {n for pair in equal for n in pair}
    assert sum(likeness != "near" for likeness in pairs.values()) == len(members) - len(groups(equal))


def test_planted_repeats_in_many_prompts():
    draw = random.Random(3)
    vocabulary = [f"word{n}" for n in range(3000)]
    frequent = ["how", "do", "i", "the", "a", "to"]
    texts = [" ".join(frequent + draw.sample(vocabulary, 12)) for _ in range(6000)]
    planted = draw.sample(range(5000), 200)
    repeats = [texts[n].replace("how", "why") for n in planted]
    sets = [make(texts, "a"), make(repeats, "b")]
    expected = {(f"a-{n}", f"b-{k}"): Likeness.NEAR for k, n in enumerate(planted)}
    assert found(*sets) == expected


@pytest.mark.skipif(
    "DISCERNMENT_DATA" not in os.environ, reason="needs the public sets in the folder DISCERNMENT_DATA"
)
def test_against_the_overlaps_published_with_the_public_sets():
    folder = Path(os.environ["DISCERNMENT_DATA"])
    if not (folder / "overlaps.jsonl").exists():
        pytest.skip("the folder DISCERNMENT_DATA holds no overlaps.jsonl")
    rows = [json.loads(line) for line in (folder / "overlaps.jsonl").read_text().splitlines()]
    names = [path.stem for path in sorted(folder.glob("*.jsonl"))]
    names = [name for name in names if name not in ("overlaps", "xstest_human_labels")]
    sets = [PromptSet.from_jsonl(folder / f"{name}.jsonl") for name in names]
    expected = {frozenset((row["id_a"], row["id_b"])): (row["kind"], row["score"]) for row in rows}
    assert len(expected) > 200
    measured = {
        frozenset((d.first.id, d.second.id)): (d.likeness, round(d.similarity, 3))
        for d in find_duplicates(sets)
    }
    assert measured.items() <= expected.items()
    assert groups(measured) == groups(expected)
