"""Prompt sets: what is read from where, which row is wrong, and what stays the same."""

import csv
import json
from itertools import combinations

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.errors import DataError
from discernment.prompts import Columns, Label, Prompt, PromptSet, Provenance, Split
from tiny import make_benign, make_prompts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
WORDS = TEXT.filter(str.strip)
FIELDS = {
    "text": WORDS,
    "label": st.sampled_from(Label),
    "category": st.none() | TEXT,
    "source": TEXT,
    "partner": st.none() | TEXT,
    "frame": st.none() | TEXT,
    "keyword": st.none() | TEXT,
    "split": st.none() | st.sampled_from(Split),
    "response": st.none() | WORDS.filter(lambda t: t.casefold() != "nan"),  # which is a missing one
}
ROWS = [
    {
        "id": "a",
        "prompt": "Kill a process?",
        "label": "seemingly_toxic",
        "split": "test",
        "response": "Sure.",
    },
    {"id": "b", "prompt": "Kill a man?", "label": "toxic", "category": "crime", "partner": "a"},
]
READ = [
    Prompt(
        id="a",
        text="Kill a process?",
        label=Label.SEEMINGLY_TOXIC,
        source="own",
        split=Split.TEST,
        response="Sure.",
    ),
    Prompt(id="b", text="Kill a man?", label=Label.TOXIC, category="crime", source="own", partner="a"),
]


@st.composite
def prompt_sets(draw):
    ids = draw(st.lists(TEXT, unique=True, max_size=5))
    return PromptSet(
        [Prompt(id=i, **draw(st.fixed_dictionaries(FIELDS))) for i in ids], Provenance(name="drawn")
    )


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path, rows):
    with path.open("w", encoding="utf-8-sig", newline="") as handle:  # as spreadsheets save it
        writer = csv.DictWriter(handle, list({key: None for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


@given(prompt_sets())
@settings(deadline=None)
def test_a_set_written_is_the_set_read(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("set") / "own.jsonl"
    prompts.to_jsonl(path)
    again = PromptSet.from_jsonl(path)
    assert list(again) == list(prompts)
    assert again.fingerprint == prompts.fingerprint


def test_jsonl_csv_rows_and_data_sets_read_the_same(tmp_path):
    own = Provenance(name="own")
    table = datasets.Dataset.from_list([{**dict.fromkeys(ROWS[0] | ROWS[1]), **row} for row in ROWS])
    for read in (
        PromptSet.from_jsonl(write_jsonl(tmp_path / "own.jsonl", ROWS)),
        PromptSet.from_csv(write_csv(tmp_path / "own.csv", ROWS)),
        PromptSet.from_rows(ROWS, own),
        PromptSet.from_rows(table, own),
    ):
        assert list(read) == READ


def test_columns_and_labels_of_ones_own():
    columns = Columns(
        text="q", label="y", label_map={"1": "toxic", "0": "benign"}, id="key", source="from", response="a"
    )
    rows = [{"key": 7, "q": "x", "y": 1, "from": "web", "a": "no"}, {"q": "z", "y": 0}]
    assert list(PromptSet.from_rows(rows, Provenance(name="own"), columns)) == [
        Prompt(id="7", text="x", label=Label.TOXIC, source="web", response="no"),
        Prompt(id="own-00002", text="z", label=Label.BENIGN, source="own"),
    ]
    fixed = Columns(text="q", label=None, fixed_label=Label.TOXIC, id="key")
    assert [p.label for p in PromptSet.from_rows(rows, Provenance(name="own"), fixed)] == [Label.TOXIC] * 2


@pytest.mark.parametrize("said", [{"label": "y"}, {"label_map": {"1": "toxic"}}])
def test_labels_are_said_once(said):
    with pytest.raises(DataError, match="`fixed_label` gives all rows one label, so"):
        Columns(fixed_label=Label.TOXIC, **said)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x", "label": "toxic"}, r"has no prompt in column 'prompt' \(columns: text, label\)"),
        ({"prompt": " \n", "label": "toxic"}, "has no prompt in column 'prompt'"),
        (
            {"prompt": "x", "label": "harmful"},
            "has the label 'harmful'; it must be one of toxic, seemingly_toxic",
        ),
        ({"prompt": "x"}, "has no label in column 'label'"),
        ({"prompt": "x", "label": "toxic", "split": "dev"}, "has the split 'dev'; it must be one of train"),
        ({"prompt": "cut \ud83d", "label": "toxic"}, "is unusable .*unicode"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    write_jsonl(tmp_path / "own.jsonl", [ROWS[0]])
    with (tmp_path / "own.jsonl").open("a") as handle:
        handle.write("\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"own\.jsonl, line 3, {message}"):
        PromptSet.from_jsonl(tmp_path / "own.jsonl")
    with pytest.raises(DataError, match=f"set, row 2, {message}"):
        PromptSet.from_rows([ROWS[0], row], Provenance(name="set"))


def test_a_row_of_very_many_words_is_read(tmp_path):
    text = "word " * 60_000 + "end"
    write_jsonl(tmp_path / "long.jsonl", [{"prompt": text, "label": "benign"}])
    (tmp_path / "long.csv").write_text(f"prompt,label\n{text},benign\n")
    assert PromptSet.from_jsonl(tmp_path / "long.jsonl").texts == [text]
    assert PromptSet.from_csv(tmp_path / "long.csv").texts == [text]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name, rows in (
        ("a.jsonl", '{"prompt": "Hi", "label": "benign"}\n'),
        ("a.csv", "prompt,label\nHi,benign\n"),
    ):
        (tmp_path / name).write_text(rows, encoding="utf-8-sig")
    assert PromptSet.from_jsonl(tmp_path / "a.jsonl").texts == ["Hi"]
    assert PromptSet.from_csv(tmp_path / "a.csv").texts == ["Hi"]


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    for read in (PromptSet.from_jsonl, PromptSet.from_csv):
        with pytest.raises(DataError, match=r"There is no file .*gone"):
            read(tmp_path / "gone")
    (tmp_path / "list.jsonl").write_text('["a"]\n')
    with pytest.raises(DataError, match=r"list\.jsonl, row 1, is not a JSON object"):
        PromptSet.from_jsonl(tmp_path / "list.jsonl")
    (tmp_path / "latin.csv").write_bytes("prompt,label\nü,toxic\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv, line 2, is not UTF-8"):
        PromptSet.from_csv(tmp_path / "latin.csv")
    write_jsonl(tmp_path / "twice.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(DataError, match="twice has 1 repeated prompt ids, first 'a'"):
        PromptSet.from_jsonl(tmp_path / "twice.jsonl")


def test_sets_whose_ids_clash_are_joined_and_partners_stay_together():
    whole = make_prompts(3, name="one")
    half = PromptSet(list(make_prompts(2, name="two"))[::2], Provenance(name="two"))
    joined = PromptSet.concatenate([whole, half, make_benign(2)], "all")
    assert joined.texts == [*whole.texts, *half.texts, *make_benign(2).texts]
    assert joined.provenance.note == "one + two + benign"
    by_id = {p.id: p for p in joined}
    assert {"one/0-toxic", "two/0-toxic", "0-safe", "2-safe", "b0"} <= by_id.keys()
    for p in list(joined)[: len(whole)]:
        assert by_id[p.partner].text == p.text.replace("neighbor", "X").replace(
            "process", "neighbor"
        ).replace("X", "process")
        assert by_id[p.partner].partner == p.id
    with pytest.raises(DataError, match="repeated prompt ids"):
        PromptSet.concatenate([whole, whole], "twice")


def test_a_partner_that_is_not_there_is_no_stranger_of_the_same_id():
    pairs = make_prompts(3, name="one").with_label(Label.TOXIC)  # whose partners were filtered away
    (stranger,) = make_benign(1)
    named = stranger.model_copy(update={"id": pairs[0].partner})
    joined = PromptSet.concatenate([pairs, PromptSet([named], Provenance(name="other"))], "all")
    ids = {p.id for p in joined}
    assert len(ids) == 4
    assert {p.partner for p in joined} & ids == set()
    # Where nobody has the id it stays as it is.
    alone = PromptSet.concatenate([pairs, make_benign(2)], "all")
    assert [p.partner for p in alone][:3] == [p.partner for p in pairs]


def test_partners_are_found_in_another_part_of_their_set():
    whole = make_prompts(3, name="one")
    parts = [whole.with_label(Label.TOXIC), whole.with_label(Label.SEEMINGLY_TOXIC)]
    pairs = {frozenset((p.id, p.partner)) for p in whole}
    assert len(pairs) == 3
    assert {frozenset((p.id, p.partner)) for p in PromptSet.concatenate(parts, "all")} == pairs
    # Where another set has an id, both ways of a pair are called alike.
    (stranger,) = make_benign(1)
    other = PromptSet([stranger.model_copy(update={"id": parts[1][0].id})], Provenance(name="two"))
    joined = PromptSet.concatenate([*parts, other], "all")
    partner_of = {p.id: p.partner for p in joined if p.partner}
    assert len(partner_of) == 6
    assert all(partner_of[partner] == key for key, partner in partner_of.items())
    assert f"one/{parts[1][0].id}" in partner_of


@pytest.mark.parametrize("label", [None, "", float("nan")])
def test_what_none_means_is_no_meaning_of_a_missing_label(label):
    columns = Columns(label_map={"none": "benign", "violence": "toxic"})
    rows = [{"prompt": "Hi", "label": "none"}, {"prompt": "Ho", "label": "violence"}]
    assert [p.label for p in PromptSet.from_rows(rows, Provenance(name="rows"), columns)] == [
        Label.BENIGN,
        Label.TOXIC,
    ]
    with pytest.raises(DataError, match="has the label None"):
        PromptSet.from_rows([*rows, {"prompt": "Hu", "label": label}], Provenance(name="rows"), columns)


def test_filters_say_what_is_there_when_nothing_is_left():
    prompts = PromptSet.concatenate([make_prompts(3), make_benign(2)], "mixed")
    assert prompts.with_label(Label.TOXIC, Label.BENIGN).counts() == {"toxic": 3, "benign": 2}
    with pytest.raises(
        DataError, match="benign has no prompt with label toxic or seemingly_toxic; it has 2 benign"
    ):
        make_benign(2).with_label(Label.TOXIC, Label.SEEMINGLY_TOXIC)
    with pytest.raises(DataError, match="mixed has no prompt with split test"):
        prompts.with_split(Split.TEST)


@given(st.integers(0, 12), st.integers(0, 1000))
@settings(deadline=None)
def test_a_draw_is_without_replacement_in_order_and_repeatable(count, seed):
    prompts = make_benign(10)
    drawn = [p.id for p in prompts.sample(count, seed)]
    assert len(set(drawn)) == len(drawn) == min(count, 10)
    assert drawn == [p.id for p in prompts if p.id in drawn]
    assert drawn == [p.id for p in prompts.sample(count, seed)]


def test_a_draw_is_uniform():
    pairs = {frozenset(p.id for p in make_benign(4).sample(2, seed)) for seed in range(100)}
    assert pairs == {frozenset(pair) for pair in combinations([f"b{n}" for n in range(4)], 2)}


@given(prompt_sets(), st.sampled_from([*FIELDS, "id"]))
@settings(deadline=None)
def test_the_fingerprint_sees_every_field_and_the_order_and_not_the_name(prompts, name):
    assert prompts.renamed("other").fingerprint == prompts.fingerprint
    if len(prompts) > 1:
        assert PromptSet(prompts[::-1], prompts.provenance).fingerprint != prompts.fingerprint
    if prompts:
        other = {"label": {Label.TOXIC: Label.BENIGN}, "split": {Split.TEST: Split.TRAIN}}.get(name)
        value = getattr(prompts[0], name)
        default = {"label": Label.TOXIC, "split": Split.TEST}.get(name)
        changed = other.get(value, default) if other else f"{value}+"
        first = prompts[0].model_copy(update={name: changed})
        assert PromptSet([first, *prompts.prompts[1:]], prompts.provenance).fingerprint != prompts.fingerprint
