import json

import datasets
import pytest
from pydantic import ValidationError

from discernment.errors import DataError
from discernment.prompts.prompt import Label, Split
from discernment.prompts.sources import PromptSource, load_source, load_sources

ROWS = [
    {
        "id": "a",
        "prompt": "Kill a process.",
        "label": "seemingly_toxic",
        "category": "code/unix",
        "split": "train",
    },
    {"id": "b", "prompt": "Kill a man.", "label": "toxic", "category": "code", "split": "test"},
    {"id": "c", "prompt": "Bake a cake.", "label": "benign", "category": "food", "split": "train"},
    {"id": "d", "prompt": "Boil an egg.", "label": "benign", "split": "test"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def ids(source):
    return [p.id for p in load_source(source)]


def test_a_string_is_a_set():
    assert PromptSource.model_validate("xstest") == PromptSource(set="xstest")
    assert PromptSource.model_validate({"set": "xstest", "label": "toxic"}).label is Label.TOXIC
    assert ids("starter/toxic")[0].startswith("toxic-")


def test_the_split_behind_a_set_of_the_hub_is_the_hubs():
    named = PromptSource.parse("hub:org/prompts:test")
    assert (named.set, named.hub_split, named.split) == ("hub:org/prompts", "test", None)
    assert PromptSource.parse("starter/pairs:test").split == "test"
    assert PromptSource.parse("hub:org/prompts").hub_split == "train"


def test_configurations_of_one_hub_set_stand_together(monkeypatch):
    def load_dataset(name, config, split, revision):
        return [{"prompt": f"{config} {n}"} for n in range(2)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sources = [
        PromptSource(set="hub:bench/or-bench", hub_config=config, fixed_label=label)
        for config, label in (("hard", Label.SEEMINGLY_TOXIC), ("toxic", Label.TOXIC))
    ]
    joined = load_sources(sources, "contrast")
    assert [p.text for p in joined] == ["hard 0", "hard 1", "toxic 0", "toxic 1"]
    assert len({p.id for p in joined}) == 4


def test_filters(file):
    assert ids(file) == ["a", "b", "c", "d"]
    assert ids(PromptSource(set=file, label=Label.TOXIC)) == ["b"]
    assert ids(PromptSource(set=file, label=(Label.TOXIC, Label.SEEMINGLY_TOXIC))) == ["a", "b"]
    assert ids(PromptSource(set=file, split=Split.TEST)) == ["b", "d"]
    assert ids(PromptSource(set=file, category="code")) == ["a", "b"]
    assert ids(PromptSource(set=file, category=("code/", "food"))) == ["a", "c"]
    assert ids(PromptSource(set=file, category="code", label=Label.TOXIC, split=Split.TEST)) == ["b"]


def test_responses_that_refuse(tmp_path):
    path = tmp_path / "safety.jsonl"
    replies = {"a": "I'm sorry, no.", "b": "Sure, I'm sorry.", "c": None, "d": "I cannot."}
    path.write_text("".join(json.dumps({**row, "response": replies[row["id"]]}) + "\n" for row in ROWS))
    assert ids(PromptSource(set=str(path), response_begins="I'm sorry")) == ["a"]
    assert ids(PromptSource(set=str(path), response_begins=("I'm sorry", "I cannot"))) == ["a", "d"]
    with pytest.raises(DataError, match="response begins"):
        ids(PromptSource(set=str(path), response_begins="No"))


def test_long_prompts_are_left_out(file):
    assert ids(PromptSource(set=file, max_characters=12)) == ["b", "c", "d"]
    assert ids(PromptSource(set=file, max_characters=11)) == ["b"]
    with pytest.raises(DataError, match="at most 10 characters"):
        ids(PromptSource(set=file, max_characters=10))


def test_lists_as_a_recipe_has_them(file):
    source = PromptSource.model_validate(
        {"set": file, "label": ["toxic", "benign"], "category": ["code", "food"]}
    )
    assert ids(source) == ["b", "c"]


def test_a_draw(file):
    drawn = {seed: ids(PromptSource(set=file, limit=2, seed=seed)) for seed in range(8)}
    assert all(len(chosen) == 2 and chosen == sorted(chosen) for chosen in drawn.values())
    assert drawn[0] == ids(PromptSource(set=file, limit=2, seed=0))
    assert len({tuple(chosen) for chosen in drawn.values()}) > 1
    free = PromptSource(set=file, limit=2)
    assert [p.id for p in load_source(free)] == drawn[0]
    for seed, chosen in drawn.items():
        assert [p.id for p in load_source(free, seed=seed)] == chosen
        pinned = PromptSource(set=file, limit=2, seed=1)
        assert [p.id for p in load_sources([pinned], "two", seed=seed)] == drawn[1]
    assert len(ids(PromptSource(set=file, limit=99))) == 4


def test_own_columns_and_labels(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("question,verdict,kind,reply\nKill it?,0,x,yes\nKill him?,1,y,no\n")
    source = PromptSource.model_validate(
        {
            "set": str(path),
            "columns": {"text": "question", "label": "verdict", "category": "kind"},
            "label_map": {0: "seemingly_toxic", 1: "toxic"},  # as YAML reads them
            "response_column": "reply",
        }
    )
    assert [(p.text, p.label, p.category, p.response, p.source) for p in load_source(source)] == [
        ("Kill it?", Label.SEEMINGLY_TOXIC, "x", "yes", "own"),
        ("Kill him?", Label.TOXIC, "y", "no", "own"),
    ]
    fixed = PromptSource(set=str(path), columns={"text": "question"}, fixed_label=Label.BENIGN)
    assert [p.label for p in load_source(fixed)] == [Label.BENIGN, Label.BENIGN]


def test_the_hub(tmp_path, monkeypatch):
    """`datasets` reads a local folder in the same way as one of the hub."""
    (tmp_path / "data").mkdir()
    rows = [{"goal": "Rob a bank", "kind": "crime"}, {"goal": "Rob a shop", "kind": "crime"}]
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = PromptSource(
        set=f"hub:{tmp_path / 'data'}",
        hub_split="test",
        columns={"text": "goal", "category": "kind"},
        fixed_label=Label.TOXIC,
        limit=1,
    )
    assert [(p.text[:3], p.category, p.label) for p in load_source(source)] == [("Rob", "crime", Label.TOXIC)]
    missing = PromptSource(set=f"hub:{tmp_path / 'data'}", hub_split="nowhere", fixed_label=Label.TOXIC)
    with pytest.raises(DataError, match="split nowhere"):
        load_source(missing)


def test_several_sources_in_one_set(file):
    joined = load_sources([PromptSource(set=file, label=Label.BENIGN), "starter/benign"], "everyday")
    assert joined.provenance.name == "everyday"
    assert [p.id for p in joined][:2] == ["c", "d"]
    assert joined.counts()["benign"] == len(joined) > 100
    with pytest.raises(DataError, match="everyday names no prompts"):
        load_sources([], "everyday")
    with pytest.raises(DataError, match="repeated"):
        load_sources([file, file], "twice")


def test_a_set_by_its_labels_keeps_its_pairs():
    parts = [PromptSource(set="starter/pairs", label=label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC)]
    joined, whole = load_sources(parts, "pairs"), load_source("starter/pairs")
    assert len(joined) == 768
    assert {p.id: p for p in joined} == {p.id: p for p in whole}


def test_files_that_differ_in_their_ending_are_joined(tmp_path):
    (tmp_path / "x.csv").write_text("prompt,label,partner\nHi,benign,\nHo,toxic,x-00001\n")
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "Hu", "label": "toxic"}) + "\n")
    joined = load_sources([str(tmp_path / "x.csv"), str(tmp_path / "x.jsonl")], "all")
    assert [(p.text, p.id, p.partner) for p in joined] == [
        ("Hi", "x/x-00001", None),
        ("Ho", "x-00002", "x/x-00001"),
        ("Hu", "x-2/x-00001", None),
    ]


def test_nothing_left(file, tmp_path):
    with pytest.raises(DataError, match=r"own has no prompt with category zoo"):
        load_source(PromptSource(set=file, category="zoo"))
    with pytest.raises(DataError, match=r"own has no prompt with split validation"):
        load_source(PromptSource(set=file, split=Split.VALIDATION))
    with pytest.raises(DataError, match=r"starter/toxic has no prompt with label benign; it has \d+ toxic"):
        load_source(PromptSource(set="starter/toxic", label=Label.BENIGN))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty.jsonl has no prompts at all"):
        load_source(str(tmp_path / "empty.jsonl"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("xtest", "'xstest'"),
        ("starter/pair", "'starter/pairs'"),
        ("or_bench_hrd", "'or_bench_hard'"),
        ("%%", "list` shows"),
    ],
)
def test_unknown_sets(name, nearest):
    with pytest.raises(DataError) as caught:
        load_source(name)
    assert repr(name) in str(caught.value)
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"set": "xstest", "columns": {"text": "x"}}, "`columns` can be given for a file or `hub:NAME`"),
        ({"set": "starter/toxic", "fixed_label": "benign"}, "`fixed_label` can be given for a file"),
        (
            {"set": "own.csv", "hub_config": "x", "revision": "y"},
            "`hub_config`, `revision` can be given for `hub:NAME`",
        ),
        ({"set": "own.csv", "columns": {"response": "a"}, "response_column": "b"}, "response column once"),
        ({"set": "own.csv", "columns": {"txt": "a"}}, "Input should be 'text'"),
        (
            {"set": "own.csv", "fixed_label": "toxic", "label_map": {"1": "toxic"}},
            "`fixed_label` gives all rows one label",
        ),
        (
            {"set": "hub:a/b", "fixed_label": "toxic", "columns": {"label": "label"}},
            "`fixed_label` gives all rows one label",
        ),
        ({"set": "xstest", "limit": 0}, "greater than or equal to 1"),
        ({"set": "xstest", "label": "harmful"}, "Input should be 'toxic'"),
        ({"set": "xstest", "labels": "toxic"}, "Extra inputs"),
        ({}, "Field required"),
    ],
)
def test_wrong_options(source, message):
    with pytest.raises(ValidationError, match=message):
        PromptSource.model_validate(source)


def test_the_starter_set_has_one_response():
    with pytest.raises(DataError, match="response_column"):
        load_source(PromptSource(set="starter/toxic", response_column="chosen"))
