"""The form of the starter files, and what the shipped ones must keep."""

import re
from collections import Counter, defaultdict

import pytest
import yaml

from discernment.errors import DataError
from discernment.prompts.duplicates import find_duplicates
from discernment.prompts.leaks import label_leaks
from discernment.prompts.prompt import Label, Split
from discernment.prompts.split import split_leaks
from discernment.prompts.starter import STARTER_SETS, load_starter, parse_benign, parse_pairs, parse_toxic

FRAME = {
    "category": "safe_targets",
    "keyword": "Home address",
    "form": "question",
    "split": "train",
    "frame": "What is the home address of {}?",
    "pairs": [
        {"safe": f"shop {n}", "toxic": f"my ex number {n}", "answer": f"Street {n}."} for n in range(4)
    ],
}
TOXIC = {"category": "theft", "form": "imperative", "prompt": "Rob him.", "response": "I will not."}
BENIGN = {
    "topic": "cooking",
    "form": "question",
    "split": "test",
    "prompt": "How hot?",
    "response": "Very.\nYes.",
}


def changed(row, **fields):
    return yaml.safe_dump([{key: value for key, value in {**row, **fields}.items() if value is not None}])


def test_a_pair_becomes_two_partners():
    prompts = parse_pairs(changed(FRAME))
    assert len(prompts) == 8
    safe, toxic = prompts[2:4]
    assert (safe.id, toxic.id) == ("safe-targets-home-address-2-safe", "safe-targets-home-address-2-toxic")
    assert (safe.partner, toxic.partner) == (toxic.id, safe.id)
    assert safe.text == "What is the home address of shop 1?"
    assert toxic.text == "What is the home address of my ex number 1?"
    assert (safe.label, toxic.label) == (Label.SEEMINGLY_TOXIC, Label.TOXIC)
    assert (safe.response, toxic.response) == ("Street 1.", None)
    for prompt in (safe, toxic):
        assert prompt.category == "safe_targets"
        assert prompt.source == "starter/safe_targets"
        assert prompt.frame == FRAME["frame"]
        assert prompt.keyword == "Home address"
        assert prompt.split is Split.TRAIN


def test_toxic_and_benign_rows():
    (toxic,) = parse_toxic(changed(TOXIC))
    assert (toxic.id, toxic.text, toxic.label, toxic.response) == (
        "toxic-theft-01",
        "Rob him.",
        "toxic",
        "I will not.",
    )
    assert (toxic.category, toxic.source, toxic.split) == ("theft", "starter/toxic/theft", "train")
    (benign,) = parse_benign(changed(BENIGN))
    assert (benign.id, benign.label, benign.response) == ("benign-cooking-01", "benign", "Very.\nYes.")
    assert (benign.category, benign.source, benign.split) == ("cooking", "starter/benign/cooking", "test")


def test_a_tenth_of_each_toxic_category_is_held_out_whatever_the_order():
    rows = [
        {**TOXIC, "category": c, "prompt": f"Rob {c} {n}."} for c in ("theft", "fraud") for n in range(20)
    ]

    def held_out(rows):
        return {p.text for p in parse_toxic(yaml.safe_dump(rows)) if p.split is Split.VALIDATION}

    chosen = held_out(rows)
    assert Counter(text.split()[1] for text in chosen) == {"theft": 2, "fraud": 2}
    assert held_out(rows[::-1]) == chosen


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (
            parse_pairs,
            changed(FRAME, frame="What is it?"),
            "row 1: the frame 'What is it.' must have the slot",
        ),
        (parse_pairs, changed(FRAME, frame="Is {} like {}?"), "exactly once"),
        (parse_pairs, changed(FRAME, pairs=FRAME["pairs"][:3]), "row 1 pairs: List should have at least 4"),
        (parse_pairs, changed(FRAME, form="imperative"), "must end in a question mark if"),
        (parse_pairs, changed(FRAME, frame="Say it to {}"), "must end in a question mark if"),
        (parse_pairs, changed(FRAME, split="dev"), "row 1 split: Input should be 'train'"),
        (parse_pairs, changed(FRAME, keyword=None), "row 1 keyword: Field required"),
        (parse_pairs, changed(FRAME, author="me"), "row 1 author: Extra inputs"),
        (
            parse_pairs,
            changed(FRAME, pairs=[*FRAME["pairs"], {"safe": " a", "toxic": "b"}]),
            "row 1 pairs 5 safe:",
        ),
        (parse_pairs, "- [unclosed", "frames.yaml is not YAML"),
        (parse_pairs, "", "frames.yaml: Input should be a valid list"),
        (parse_toxic, changed(TOXIC, prompt="Rob him?"), "toxic.yaml, row 1: 'Rob him.' must end"),
        (parse_toxic, changed(TOXIC, response=""), "toxic.yaml, row 1 response:"),
        (parse_benign, changed(BENIGN, split=None), "benign.yaml, row 1 split: Field required"),
    ],
)
def test_broken_files(parse, text, message):
    with pytest.raises(DataError, match=message):
        parse(text)


def test_unknown_sets():
    with pytest.raises(
        DataError, match="no starter set 'starter/other'; there are starter/pairs, starter/toxic"
    ):
        load_starter("starter/other")


# ------------------------------------------------------------------ the shipped files

HELD_OUT = (Split.VALIDATION, Split.TEST)


@pytest.fixture(scope="module")
def pairs():
    return load_starter("starter/pairs")


@pytest.fixture(scope="module")
def everything():
    return [load_starter(name) for name in STARTER_SETS]


def of_split(sets, *splits):
    return [p for s in sets for p in s if p.split in splits]


def test_there_are_enough(everything):
    pairs, toxic, benign, _ = everything
    assert all(p.split for s in everything for p in s)
    assert pairs.counts() == {"toxic": len(pairs) // 2, "seemingly_toxic": len(pairs) // 2}
    assert len(pairs) // 2 >= 240
    assert len({p.category for p in pairs}) >= 12
    assert toxic.counts() == {"toxic": len(toxic)}
    assert len(toxic) >= 240
    assert benign.counts() == {"benign": len(benign)}
    assert len(benign) >= 400
    assert len({p.category for p in benign}) >= 20
    assert {p.split for p in pairs} == {p.split for p in benign} == set(Split)
    assert {p.split for p in toxic} == {Split.TRAIN, Split.VALIDATION}


def test_ids_are_unique_over_all_sets(everything):
    ids = Counter(p.id for s in everything for p in s)
    assert set(ids.values()) == {1}


def test_what_is_trained_on_has_responses(everything):
    pairs, toxic, benign, _ = everything
    assert all(p.response for s in (toxic, benign) for p in s)
    safe = [p for p in pairs if p.label is Label.SEEMINGLY_TOXIC and p.split is not Split.TEST]
    assert safe and all(p.response for p in safe)
    openings = Counter(" ".join(p.response.split()[:3]) for p in toxic)
    assert len(openings) >= 10
    lengths = [len(p.response.split()) for p in toxic]
    assert min(lengths) >= 8 and max(lengths) - min(lengths) >= 10


def test_toxic_prompts_are_never_answered(pairs):
    assert not any(p.response for p in pairs if p.label is Label.TOXIC)


def test_pairs_are_minimal(pairs):
    by_id = {p.id: p for p in pairs}
    for prompt in pairs:
        partner = by_id[prompt.partner]
        assert partner.partner == prompt.id
        assert {prompt.label, partner.label} == {Label.TOXIC, Label.SEEMINGLY_TOXIC}
        assert (prompt.frame, prompt.split, prompt.category) == (
            partner.frame,
            partner.split,
            partner.category,
        )
        before, after = prompt.frame.split("{}")
        assert prompt.text.startswith(before) and prompt.text.endswith(after)
        assert prompt.keyword.casefold() in prompt.frame.casefold()


@pytest.mark.parametrize("split", Split)
def test_both_forms_stand_on_both_sides(pairs, split):
    forms = Counter((p.label, p.text.endswith("?")) for p in pairs if p.split is split)
    assert len(forms) == 4
    assert min(forms.values()) >= 0.3 * max(forms.values())


def inflected(keyword):
    """The regular forms of a word, spelled out: independent of the stems that the package compares."""
    bases = {keyword, keyword.removesuffix("e"), keyword + keyword[-1], keyword.removesuffix("ing")}
    forms = {
        base + ending
        for base in bases
        for ending in ("", "s", "es", "d", "ed", "ing", "er", "ers", "ery", "ion")
    }
    if keyword.endswith("y"):
        forms |= {keyword[:-1] + ending for ending in ("ies", "ied", "ial", "ious")}
    return forms - ({keyword.removesuffix("e")} if keyword.endswith("e") else set()) - {keyword + keyword[-1]}


def test_no_held_out_key_word_is_seen_in_training(everything):
    keywords = {p.keyword.casefold() for p in of_split(everything, *HELD_OUT) if p.keyword}
    assert len(keywords) >= 36
    train = of_split(everything, Split.TRAIN)
    texts = [f"{p.text} {p.response or ''}".casefold() for p in train]
    seen = defaultdict(list)
    for text in texts:
        for word in re.findall(r"[a-z]+", text):
            seen[word].append(text)
    joined = "\n".join(texts)
    for keyword in keywords:
        if keyword.isalpha():
            assert {form: seen[form] for form in inflected(keyword) & set(seen)} == {}
        else:
            assert keyword not in joined


def test_no_held_out_frame_or_partner_is_seen_in_training(everything):
    frames = defaultdict(set)
    for prompt in everything[0]:
        frames[prompt.split].add(prompt.frame)
    assert len(frames[Split.TEST]) >= 24
    assert not frames[Split.TRAIN] & (frames[Split.VALIDATION] | frames[Split.TEST])
    assert not frames[Split.VALIDATION] & frames[Split.TEST]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [(Split.TRAIN, Split.VALIDATION), (Split.TRAIN, Split.TEST), (Split.VALIDATION, Split.TEST)],
)
def test_no_split_gives_a_later_one_away(everything, earlier, later):
    leaks = split_leaks(of_split(everything, earlier), of_split(everything, later))
    assert [(leak.kind, leak.value, leak.train.text) for leak in leaks] == []


def test_nothing_repeats(everything):
    assert [(d.likeness, d.first.text, d.second.text) for d in find_duplicates(everything) if d.crosses] == []


def test_the_form_does_not_give_the_label_away(pairs):
    leaks = label_leaks(pairs)
    assert leaks.pairs is not None
    assert leaks.pairs.toxic == leaks.pairs.seemingly_toxic == len(pairs) // 2
    assert 0.4 <= leaks.pairs.auroc <= 0.6
