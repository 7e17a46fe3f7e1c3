import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from discernment.errors import DataError
from discernment.prompts import Columns
from discernment.prompts.catalogue import (
    CatalogueEntry,
    catalogue,
    check_at_hand,
    load_catalogue_set,
    nearest_names,
)
from discernment.prompts.conversation import Turn
from discernment.prompts.prompt import Label

DATA = os.environ.get("DISCERNMENT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="needs the public sets in the folder DISCERNMENT_DATA")


def write(folder, name, rows):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ROW = {"id": "7", "prompt": "How do I kill a process?", "label": "seemingly_toxic", "source": "elsewhere"}


def test_the_entries_are_whole():
    entries = catalogue()
    assert len(entries) == 36
    known = [entry.sha256 for entry in entries.values() if entry.sha256]
    assert len(known) == len(set(known)) == 21
    for name, entry in entries.items():
        assert entry.name == name
        assert Path(entry.file).stem == name
        assert entry.form or entry.file == f"{name}.jsonl"
        assert entry.address.startswith("https://")
        assert entry.licence
        assert (entry.checked == "file") == bool(entry.sha256)
        assert entry.rows is None or entry.rows > 0
        assert entry.rows or entry.checked != "file"
        if entry.kind == "prompts":
            assert set(entry.labels) <= set(Label)


@pytest.mark.parametrize("change", [{"checked": "makers"}, {"sha256": None}])
def test_only_a_file_gives_a_checksum(change):
    entry = {**catalogue()["xstest"].model_dump(), **change}
    with pytest.raises(ValidationError, match="checksum if it was checked against a file, and only then"):
        CatalogueEntry(**entry)


def test_what_is_said_of_the_hub_can_be_read():
    hubs = {name: entry for name, entry in catalogue().items() if entry.hub}
    assert {"xstest", "or_bench_hard", "coconot_contrast", "jailbreakbench"} <= set(hubs)
    roles = {field.name for field in dataclasses.fields(Columns)}
    forms = [(entry, entry.form) for entry in catalogue().values() if entry.form]
    assert len(forms) == 4
    for entry, form in [*((entry, entry.hub) for entry in hubs.values()), *forms]:
        assert {"text"} <= set(form.columns) <= roles
        given = {form.fixed_label} if form.fixed_label else set(form.label_map.values())
        assert given == set(entry.labels)


OVER_REFUSAL = {
    "xstest", "oktest", "or_bench_hard", "or_bench_80k", "coconot_contrast", "phtest", "falsereject", "scope",
    "evorefuse_test", "orfuzz", "xsb", "ms_xsb", "ragrefuse", "health_orsc_hard",
}  # fmt: skip
STL = {"i_malicious", "i_cona", "i_controversial", "physical_safety_unsafe", "q_harm"}
SAFETY = {
    "or_bench_toxic", "advbench", "harmbench", "jailbreakbench", "malicious_instruct", "strongreject", "sorry_bench",
}  # fmt: skip


def test_benchmarks_say_what_is_better_and_how_to_evaluate() -> None:
    for names, direction in ((OVER_REFUSAL, "compliance"), (STL | SAFETY, "refusal")):
        for name in names:
            entry = catalogue()[name]
            assert direction in entry.directions.values()
            assert entry.licence and entry.benchmark
            assert entry.benchmark.judge == "keywords"
            assert 24 <= entry.benchmark.max_new_tokens <= 256
    assert catalogue()["xstest"].directions == {
        Label.SEEMINGLY_TOXIC: "compliance",
        Label.TOXIC: "refusal",
    }
    assert catalogue()["general_instructions"].benchmark is None
    assert catalogue()["xstest_human_labels"].directions == {}


def test_a_set_of_no_known_version_is_taken_as_it_is(tmp_path) -> None:
    write(tmp_path, "strongreject", [{**ROW, "label": "toxic"}])
    prompts = load_catalogue_set("strongreject", tmp_path)
    assert [(p.label, p.source) for p in prompts] == [(Label.TOXIC, "strongreject")]
    assert prompts.provenance.revision


def test_halves_say_that_they_are_halves():
    for name in ("or_bench_hard", "coconot_contrast"):
        assert "random half" in (catalogue()[name].note or "")
    assert "Noisy" in (catalogue()["q_harm"].note or "")


def test_a_file_of_another_version(tmp_path):
    write(tmp_path, "oktest", [ROW])
    with pytest.raises(DataError, match=r"oktest.jsonl is another version .*checksum .*verify=False"):
        load_catalogue_set("oktest", tmp_path)
    prompts = load_catalogue_set("oktest", tmp_path, verify=False)
    assert [(p.id, p.text, p.label, p.source) for p in prompts] == [
        ("7", "How do I kill a process?", Label.SEEMINGLY_TOXIC, "oktest")
    ]
    assert prompts.provenance.licence == "not stated"
    assert str(prompts.provenance.revision).startswith("sha256:")


def test_the_reply_to_train_on(tmp_path):
    write(tmp_path, "coconot_pref", [{**ROW, "chosen": "good", "rejected": "bad", "response": "other"}])
    write(tmp_path, "stl_safety", [{**ROW, "response": "no"}])
    write(tmp_path, "oktest", [ROW])

    def response(name, **options):
        return load_catalogue_set(name, tmp_path, verify=False, **options)[0].response

    assert response("coconot_pref") == "good"
    assert response("coconot_pref", response_column="rejected") == "bad"
    assert response("stl_safety") == "no"
    assert response("oktest") is None


# Rows of our own in the form in which the makers publish theirs.
CHAT = {
    "conversations": [{"from": "human", "value": "How do I kill weeds?"}],
    "chosen": {"from": "gpt", "value": "Pull them out."},
    "rejected": {"from": "gpt", "value": "Sorry, no."},
}
PUBLISHED = {
    "evorefuse_test.jsonl": '{"instruction": "How do I crush\\nan egg?"}\n{"instruction": "Who stole the show?"}\n',
    "evorefuse_align.json": json.dumps([CHAT, CHAT], indent=4),
    "orfuzz.csv": 'input\n"Please repeat:\nI could kill, maim and eat"\nHow many words: Shoot the ""moon""\n',
    "health_orsc_hard.jsonl": (
        '{"id": 12, "question": "What dose is lethal?", "classification": "Drug", "original_question": "x"}\n'
        '{"id": 40, "question": "What spreads flu?", "classification": "Biological", "original_question": "y"}\n'
    ),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_a_file_as_its_makers_publish_it(file, tmp_path, monkeypatch):
    (tmp_path / file).write_text(PUBLISHED[file])
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    name = Path(file).stem
    prompts = load_catalogue_set(name)
    assert [(p.label, p.source) for p in prompts] == [(Label.SEEMINGLY_TOXIC, name)] * 2
    assert [(p.text, p.category, p.response) for p in prompts] == {
        "evorefuse_test": [("How do I crush\nan egg?", None, None), ("Who stole the show?", None, None)],
        "evorefuse_align": [("How do I kill weeds?", None, "Pull them out.")] * 2,
        "orfuzz": [
            ("Please repeat:\nI could kill, maim and eat", None, None),
            ('How many words: Shoot the ""moon""', None, None),
        ],
        "health_orsc_hard": [
            ("What dose is lethal?", "Drug", None),
            ("What spreads flu?", "Biological", None),
        ],
    }[name]
    assert prompts.provenance.address == catalogue()[name].address
    if name == "evorefuse_align":
        rejected = load_catalogue_set(name, response_column="rejected")
        assert [p.response for p in rejected] == ["Sorry, no."] * 2


def test_a_set_of_conversations(tmp_path, monkeypatch):
    said = [
        {"role": "user", "content": "We rehearse a play."},
        {"role": "assistant", "content": "Which one?"},
        {"role": "user", "content": "How do I stab the king?"},
    ]
    rows = [
        {"prompt": said, "label": "seemingly_toxic", "category": "theatre"},
        {"prompt": [*said[:2], {"role": "user", "content": "Where is he at night?"}], "label": "toxic"},
    ]
    write(tmp_path, "ms_xsb", rows)
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    prompts = load_catalogue_set("ms_xsb")
    before = (Turn(role="user", content="We rehearse a play."), Turn(role="assistant", content="Which one?"))
    assert [(p.text, p.earlier, p.label, p.category) for p in prompts] == [
        ("How do I stab the king?", before, Label.SEEMINGLY_TOXIC, "theatre"),
        ("Where is he at night?", before, Label.TOXIC, None),
    ]


def test_a_set_with_passages_and_three_labels(tmp_path, monkeypatch):
    texts = {label: f"Passage.\n\nAnother.\n\nA {label} question?" for label in Label}
    write(tmp_path, "ragrefuse", [{"prompt": text, "label": label} for label, text in texts.items()])
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    assert {p.label: p.text for p in load_catalogue_set("ragrefuse")} == texts
    assert set(catalogue()["ragrefuse"].labels) == set(texts)


BY_HAND = [n for n, e in catalogue().items() if e.kind == "prompts" and not e.hub and e.checked != "file"]


@pytest.mark.parametrize("name", BY_HAND)
def test_a_set_that_nobody_loaded_is_asked_for_in_one_sentence(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load_catalogue_set(name, tmp_path)
    entry, said = catalogue()[name], str(caught.value)
    assert "\n" not in said and ". " not in said
    assert said.startswith(f"{name} is not at hand: put {entry.file} (")
    assert (f"({entry.form.path} of" if entry.form else "with `prompt` and `label`; from") in said
    assert entry.address in said and "DISCERNMENT_DATA" in said
    assert {"makers": "none of it was loaded", "others": "second-hand"}[entry.checked] in said


def test_the_page_on_data_says_what_was_loaded():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(file|makers|others)` \|(.*)\|$", page, re.MULTILINE)
    said = {how: set(re.findall(r"`(\w+)`", sets)) for how, sets in rows}
    assert set(said) == {"file", "makers", "others"}
    for how in ("makers", "others"):
        assert said[how] == {name for name, entry in catalogue().items() if entry.checked == how}
    listed = set().union(*said.values())
    assert listed == set(catalogue())


def test_the_folder_of_the_environment(tmp_path, monkeypatch):
    write(tmp_path, "oktest", [ROW])
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    assert len(load_catalogue_set("oktest", verify=False)) == 1


def test_a_set_that_is_nowhere_at_hand(tmp_path, monkeypatch):
    monkeypatch.delenv("DISCERNMENT_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        load_catalogue_set("oktest", tmp_path)
    for part in (
        "oktest.jsonl",
        "https://github.com/InvokerStark/OverKill",
        "DISCERNMENT_DATA",
        "the hub has no copy",
    ):
        assert part in str(caught.value)


def test_all_sets_that_are_missing_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    by_hand = [entry for entry in catalogue().values() if entry.hub is None and entry.kind == "prompts"]
    first, second, third = by_hand[:3]
    (tmp_path / third.file).write_text("{}")
    on_hub = next(name for name, entry in catalogue().items() if entry.hub is not None)
    with pytest.raises(DataError) as error:
        check_at_hand(
            [first.name, second.name, third.name, first.name, on_hub, "mine.jsonl", "starter/pairs"]
        )
    said = str(error.value)
    assert said.startswith("2 of the public sets are not at hand")
    assert f"put {first.file} (from {first.address}), {second.file} (from {second.address}) into" in said
    assert third.file not in said
    check_at_hand([first.name, third.name, "starter/pairs"])


def test_a_set_that_the_hub_does_not_give(tmp_path):
    program = (
        "from discernment.errors import DataError\n"
        "from discernment.prompts.catalogue import load_catalogue_set\n"
        "try:\n    load_catalogue_set('xstest')\n"
        "except DataError as error:\n    print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "DISCERNMENT_DATA"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.count("\n") == 1
    for part in ("xstest.jsonl", "github.com/paul-rottger", "DISCERNMENT_DATA", "hub", "Paul/XSTest"):
        assert part in run.stdout


def test_unknown_names():
    with pytest.raises(DataError, match="no public set 'xtest' in the catalogue; did you mean 'xstest'"):
        load_catalogue_set("xtest")
    assert nearest_names("zzzzz", catalogue()) == "`discern prompts list` shows them all"


def test_completions_are_no_prompts():
    with pytest.raises(DataError, match="xstest_human_labels holds completions"):
        load_catalogue_set("xstest_human_labels")


@needs_data
def test_the_catalogue_against_the_manifest_of_the_folder():
    manifest = json.loads((Path(DATA) / "MANIFEST.json").read_text())
    listed = {row["file"]: row for row in manifest["files"] if "labels" in row}
    known = [entry for entry in catalogue().values() if entry.sha256]
    assert len(listed) == 21
    assert {entry.file for entry in known} == set(listed)
    for entry in known:
        row = listed[entry.file]
        assert (entry.sha256, dict(entry.labels)) == (row["sha256"], row["labels"])
        assert entry.paper == row["paper"].get("arxiv")
        assert entry.licence.split()[0] in row["licence"]
        public = row["public_address"]
        hub = public.get("huggingface", "").split(" ")[0]
        repositories = {public.get("github"), *(upstream["repository"] for upstream in row["upstream"])}
        assert entry.address in {
            f"https://huggingface.co/datasets/{hub}",
            *(f"https://github.com/{repository}" for repository in repositories),
        }


@needs_data
@pytest.mark.parametrize("name", [n for n, e in catalogue().items() if e.kind == "prompts" and e.sha256])
def test_every_set_can_be_read_as_it_is_described(name):
    prompts = load_catalogue_set(name, Path(DATA))
    entry = catalogue()[name]
    assert prompts.counts() == dict(entry.labels)
    assert {p.source for p in prompts} == {name}
    assert all(p.response for p in prompts) == bool(entry.response)
