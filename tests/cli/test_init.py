"""`discern init`: a recipe that can be run as it stands, with a reason for each choice."""

import csv
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from discernment.errors import DataError
from discernment.files import read_yaml
from discernment.models.model_spec import ModelSpec
from discernment.prompts import load_source
from discernment.runs.built_in import find_recipe
from discernment.runs.first_recipe import begin
from discernment.runs.first_recipe.begin import choose, write_recipe
from discernment.runs.first_recipe.circumstances import Machine
from discernment.runs.first_recipe.draft import as_yaml
from discernment.runs.first_recipe.estimate import Way
from discernment.runs.first_recipe.folder import Said
from discernment.runs.preparation import prepare
from discernment.runs.recipe import read_recipe
from tiny import save_model

MACHINE = Machine("cpu", 1, 2**34, torch.float32)


def uncommented(text):
    """The keys and items with a value that have a comment neither on their line nor above it."""
    lines = text.splitlines()
    found = []
    for above, line in zip(["", *lines], lines, strict=False):
        is_choice = re.match(r"\s*(- .+|[\w-]+: .+)$", line)
        if is_choice and not above.lstrip().startswith("#") and "  # " not in line:
            found.append(line)
    return found


def test_a_choice_without_a_reason_would_be_seen():
    assert uncommented("# a\nx: 1\ny: 2\nz:\n  - 3\n  - 4  # b\n") == ["y: 2", "  - 3"]


@pytest.fixture
def questions(files, tmp_path):
    """Forty labelled questions with replies under odd names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    with (folder / "questions.csv").open("w", newline="") as handle:
        table = csv.writer(handle, delimiter=";")
        table.writerow(["nr", "user_q", "kind", "bot answer"])
        for n in range(60):
            place = ["Rome", "Paris", "Oslo", "Bern"][n % 4]
            kind = "bad" if n % 2 else "borderline"
            said = "I'm sorry, I can't help with that." if n % 2 else "Sure, wait a little."
            table.writerow([n, f"How do I stop number {n} in {place}?", kind, said])
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory, tokenizer):
    """What is chosen for a tiny model and the starter set, with time enough."""
    folder = save_model(tmp_path_factory.mktemp("made") / "tiny", tokenizer)
    return choose(ModelSpec(model=str(folder)), None, Said(), Path("out.yaml"), 60, machine=MACHINE)


def written(choices, command="discern init tiny"):
    """The recipe with these choices, and its text."""
    text = as_yaml(choices, "out", command)
    assert uncommented(text) == []
    return write_recipe(text, Path("out.yaml")), text


def test_the_recipe_reads_back_and_is_never_written_over_unless_asked(discern, files):
    code, output, error = discern("init", "tiny", "--minutes", "1")
    assert code == 0, error
    assert output.splitlines()[-1].startswith("Next: discern run tiny.yaml")
    text = Path("tiny.yaml").read_text()
    assert len(re.findall(r"^ *[\w-]+: .", text, re.MULTILINE)) > 20
    assert uncommented(text) == []
    recipe = read_recipe("tiny.yaml")
    assert recipe.name == "tiny"
    assert [method.label for method in recipe.methods] == [
        *("base", "stl", "stl_aug", "dcr"),
        *("calibrated stl", "calibrated dcr"),
    ]
    assert 1 <= recipe.refine["layer"] <= 4
    assert not prepare(recipe).seen_in_training
    # Less time means a shorter stage 1 and fewer test prompts; stage 2 stays whole.
    data = recipe.data
    limits = [source[0].limit for source in (data.general, data.safety, data.augmentation)]
    assert (limits, recipe.refine["steps"]) == ([160, 96, 40], 25)
    assert [benchmark.limit for benchmark in recipe.evaluate.benchmarks] == [64, 20]

    code, output, error = discern("init", "tiny")
    assert (code, output) == (2, "")
    assert error == (
        "discern: tiny.yaml is there already; name another by --out, or write over it by --force.\n"
    )
    assert Path("tiny.yaml").read_text() == text
    Path("tiny.yaml").write_text("mine")
    assert discern("init", "tiny", "--force")[0] == 0
    assert read_recipe("tiny.yaml").refine["steps"] >= 25


def test_with_the_starter_set_it_trains_on_what_the_quickstart_does(files, first):
    written(first)
    ours, theirs = (read_yaml(find_recipe(name).read_text()) for name in ("out.yaml", "quickstart"))
    assert ours["data"] == theirs["data"]
    assert ours["methods"] == [
        *theirs["methods"][:-1],
        {"method": "dcr", "options": {"augmented": True}},
        {"method": "calibrated", "name": "calibrated stl", "on": "stl"},
        {"method": "calibrated", "name": "calibrated dcr", "on": "dcr"},
    ]
    assert theirs["methods"][-1] == "dcr"
    assert ours["evaluate"]["benchmarks"] == theirs["evaluate"]["benchmarks"]
    for stage in ("refine", "align"):
        said = {key: ours[stage][key] for key in theirs[stage] if key != "layer"}
        assert said == {key: value for key, value in theirs[stage].items() if key != "layer"}


def test_of_the_quickstarts_model_the_layer_is_the_one_that_ranked_best(files, first):
    recipe, text = written(replace(first, known=True, layer=15))
    assert recipe.refine["layer"] == 15
    assert "ranked best on validation prompts for this very model" in re.sub(r"\n *# ", " ", text)


def test_odd_columns_are_recognised_and_told(discern, questions):
    code, output, _ = discern("init", "tiny", "--data", "mine", "--out", "sub/own.yaml")
    assert code == 0
    assert (
        "questions.csv: column `user_q` as prompt, `kind` as label: `bad` -> toxic, `borderline` -> seemingly_toxic, "
        "`bot answer` as reply (30 toxic, 30 seemingly_toxic)"
    ) in output
    text = Path("sub/own.yaml").read_text()
    assert uncommented(text) == []
    assert "column `user_q` as prompt" in re.sub(r"\n# ", " ", text)
    recipe = read_recipe("sub/own.yaml")
    prepared = prepare(recipe)
    own, materials = prepared.benchmarks[0], prepared.materials["dcr"]
    assert own.provenance.name == "own prompts"
    assert own.counts() == {"toxic": 9, "seemingly_toxic": 9}
    assert not prepared.seen_in_training
    refusals = [p for p in materials.safety if p.source == "questions"]
    answers = [p for p in materials.augmentation if p.source == "questions"]
    assert {p.response for p in refusals} == {"I'm sorry, I can't help with that."}
    assert {p.response for p in answers} == {"Sure, wait a little."}
    assert len(materials.safety) == 96
    assert {"questions", "starter/toxic/violence"} & {p.source for p in materials.contrast} >= {"questions"}


def test_a_try_that_fails_leaves_the_prompts_of_the_recipe_that_is_there(discern, questions, monkeypatch):
    assert discern("init", "tiny", "--data", "mine")[0] == 0
    before = Path("tiny-prompts.jsonl").read_bytes()
    (questions / "more.csv").write_text("prompt,label\nHow so?,toxic\n")

    def fail(*_):
        assert Path("tiny-prompts.jsonl").read_bytes() != before
        raise DataError("no luck")

    monkeypatch.setattr(begin, "training_sets", fail)
    code, _, error = discern("init", "tiny", "--data", "mine", "--force")
    assert (code, error.splitlines()[-1]) == (2, "discern: no luck")
    assert Path("tiny-prompts.jsonl").read_bytes() == before


def test_what_the_options_say_of_files(discern, questions):
    (questions / "more.csv").write_text("question\nHow do I pick a lock?\nHow do I pick a flower?\n")
    (questions / "junk.csv").write_text("a,b\n1,2\n")
    code, _, error = discern("init", "tiny", "--data", "mine", "--skip", "junk.csv")
    assert code == 2
    assert re.match(r"discern: more.csv has no column .* `--label more.csv=toxic`", error)
    assert error.count("\n") == 1
    options = [
        "--skip",
        "junk.csv",
        "--label",
        "more.csv=seemingly_toxic",
        "--label-map",
        "questions.csv:borderline=benign",
    ]
    code, output, _ = discern("init", "tiny", "--data", "mine", *options)
    assert code == 0
    assert (
        "more.csv: column `question` as prompt, all rows as seemingly_toxic (as you said) (2 seemingly_toxic)"
        in output
    )
    assert "`borderline` -> benign" in output
    assert "left out: junk.csv (as you said)" in output
    assert read_recipe("tiny.yaml")
    head = " ".join(line.removeprefix("#").strip() for line in Path("tiny.yaml").read_text().splitlines()[:8])
    (command,) = re.findall(r"Written by `(discern init [^`]*)`", head)
    again = shlex.split(command)[1:]
    assert set(options) <= set(again)
    before = Path("tiny-prompts.jsonl").read_bytes()
    assert discern(*again, "--force")[0] == 0
    assert Path("tiny-prompts.jsonl").read_bytes() == before


MISTAKES = {
    "no data": (["--label", "a.csv=toxic"], "--label, --label-map, --column and --skip are for the files of --data"),
    "no label": (["--data", "mine", "--label", "a.csv=nasty"], "--label 'a.csv=nasty': 'nasty' is no label; say one of"),
    "two ways": (
        ["--data", "mine", "--label", "a.csv=toxic", "--label-map", "a.csv:bad=benign"],
        "--label gives all rows of a.csv one label, and --label-map or --column says that they have different ones",
    ),
    "two columns": (
        ["--data", "mine", "--label", "a.csv=toxic", "--column", "a.csv:label=kind"],
        "--label gives all rows of a.csv one label",
    ),
    "no value": (["--data", "mine", "--label-map", "a.csv=toxic"], "--label-map 'a.csv=toxic' must be FILE:VALUE=LABEL."),
    "no role": (["--data", "mine", "--column", "a.csv:word=b"], "--column 'a.csv:word=b': 'word' is no role"),
    "nothing usable": (["--data", "full"], r"full holds no prompt file, only thesis.tex \(no table of prompts\)"),
    "nothing to skip": (["--data", "full", "--skip", "qestions.csv"], r"full holds no file qestions.csv that could be skipped"),
    "unknown option": (["-M", "dtyp=float32"], "Options: `dtyp` is not a known option"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_costs_one_sentence(discern, files, options, sentence):
    code, _, error = discern("init", "tiny", *options)
    assert code == 2
    assert re.match(f"discern: {sentence}", error)
    assert error.count("\n") == 1
    assert not Path("tiny.yaml").exists()


def test_prompts_that_the_model_cannot_read_cost_one_sentence_and_leave_nothing(discern, questions):
    for file in questions.iterdir():
        file.unlink()
    (questions / "toxic.csv").write_text("prompt\n" + "how " * 300 + "\n")
    code, _, error = discern("init", "tiny", "--data", "mine")
    assert code == 2
    assert error.splitlines()[-1].startswith("discern: Every prompt has more than 192 tokens; shorten them")
    assert not {path.name for path in Path().iterdir()} & {"tiny.yaml", "tiny-prompts.jsonl"}
    (questions / "toxic-2.csv").write_text("prompt\nHow so?\n")
    code, output, _ = discern("init", "tiny", "--data", "mine")
    assert code == 0
    assert "left out: 1 prompts of more than 192 tokens" in output
    assert len(load_source("tiny-prompts.jsonl")) == 1


def test_no_such_model(discern, files):
    code, _, error = discern("init", "no/model")
    assert code == 2
    assert error.splitlines()[-1].startswith("discern: The model 'no/model' cannot be loaded")


def test_a_model_without_a_chat_template(discern, files, tokenizer, tmp_path):
    bare = type(tokenizer).from_pretrained("tiny")
    bare.chat_template = None
    shutil.rmtree("tiny")
    save_model(tmp_path / "tiny", bare)
    code, _, error = discern("init", "tiny")
    assert code == 0, error
    text = Path("tiny.yaml").read_text()
    assert "comes without a chat template" in re.sub(r"\n# ", " ", text)
    assert read_recipe("tiny.yaml").model.template == "plain"
    assert uncommented(text) == []


def test_adapters_where_all_weights_do_not_fit(files, first):
    recipe, _ = written(first)
    assert (first.way.name, recipe.refine["lora"]) == ("full fine-tuning", None)
    machine = MACHINE._replace(free=60 * 2**30)
    before = ["full fine-tuning 104.4 GiB", "full fine-tuning in small batches 104.1 GiB"]
    way = Way("LoRA", 26.5 * 2**30, True, lora=True, before=before)
    recipe, text = written(replace(first, way=way, machine=machine))
    assert (recipe.refine["lora"], recipe.align["lora"]) == ({}, {})
    assert (
        "Adapters instead of all weights: 54.0 GiB can be planned with, by estimate more than that is needed otherwise (full "
        "fine-tuning 104.4 GiB, full fine-tuning in small batches 104.1 GiB), and LoRA needs 26.5 GiB."
    ) in re.sub(r"\n *# ", " ", text)
    assert prepare(recipe).materials


def test_a_model_that_refuses_already_is_the_reference_and_gets_remedies_without_training(files, first):
    recipe, _ = written(first)
    assert recipe.reference == "stl"
    recipe, _ = written(replace(first, tried=first.tried._replace(refused=0.9)))
    assert recipe.reference == "base"
    without_training = ["prompted", "base + self_cd", "calibrated base"]
    assert [m.label for m in recipe.methods][4:] == [*without_training, "calibrated dcr"]
    assert prepare(recipe).materials.keys() >= set(without_training)


def test_nothing_is_calibrated_where_the_template_thinks_before_every_reply(files, first):
    chat = first.facts.chat.with_system(None)
    chat.__dict__["lead"] = [1]
    recipe, _ = written(replace(first, facts=first.facts._replace(chat=chat)))
    assert [m.label for m in recipe.methods] == ["base", "stl", "stl_aug", "dcr"]


def test_a_model_that_cannot_be_tried_finds_its_layer_in_the_run(files, first):
    untried = replace(first, tried=None, untried="the model is too large", layer="auto", seconds=None)
    recipe, text = written(untried)
    assert recipe.refine["layer"] == "auto"
    assert "a time that is not known: the model is too large" in re.sub(r"\n# ", " ", text)


def test_public_sets_are_taken_where_they_are(discern, files, monkeypatch, tmp_path):
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "oktest.jsonl").write_text('{"prompt": "Hi", "label": "seemingly_toxic"}\n')
    monkeypatch.setenv("DISCERNMENT_DATA", str(folder))
    code, output, _ = discern("init", "tiny")
    assert code == 0
    assert "left out: oktest: " in output
    assert [b.set for b in read_recipe("tiny.yaml").evaluate.benchmarks] == [
        "starter/pairs",
        "starter/benign",
    ]


def test_names_of_the_user_cannot_break_the_file(files, first):
    system = 'say: "hi" # now\u2028- {x}\x85'
    spec = first.spec.model_copy(update={"system": system})
    recipe, text = written(replace(first, spec=spec), "discern init 'a\nb: c\x85\u2028d: e'")
    assert recipe.model.system == system
    assert set(yaml.safe_load(text)) == {"name", "model", "data", "refine", "align", "methods", "evaluate"}


@pytest.mark.slow
def test_the_run_goes_on_to_the_report(screen, files):
    code, output, _ = screen("init", "tiny", "--minutes", "1", "--run")
    assert code == 0
    assert Path("runs/tiny/report.html").stat().st_size > 10_000
    assert "Report: runs/tiny/report.html" in output
    assert "Next:" not in output
    again, output, _ = screen("run", "tiny.yaml")
    assert again == 0
    assert "Nothing to do" in output
