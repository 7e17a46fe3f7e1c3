"""Peer methods in recipes: their options, mistakes, whole runs that are interrupted, and what a report shows of them."""

import gc

import pytest

from discernment.errors import RecipeError
from discernment.evaluation.sample import read_samples
from discernment.files import read_json, read_json_lines
from discernment.methods.method import find_method
from discernment.prompts import Label, PromptSet, Provenance
from discernment.reporting.pages.run import write_report
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from discernment.runs.stages import Quiet
from tiny import make_benign, make_prompts

METHODS = ["derta", "fixed_rejection", "think_first", "triggers", "actor"]


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """Every stage collects garbage; what the libraries hold for good need not be looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Stop(Quiet):
    """Ends the run where a stage of a method begins, as Ctrl-C would."""

    def __init__(self, at=None):
        self.at = at

    def stage(self, name, owner, *, reused):
        if (name, owner) == self.at:
            raise KeyboardInterrupt


def make_recipe(folder, tmp_path, methods, **changes):
    pairs, benign = make_prompts(4), make_benign(5)
    sets = {
        "general": benign,
        "safety": pairs.with_label(Label.TOXIC),
        "augmentation": pairs.with_label(Label.SEEMINGLY_TOXIC),
        "contrast": pairs,
    }
    for name, prompts in sets.items():
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
    PromptSet(make_prompts(6)[8:], Provenance(name="test")).to_jsonl(tmp_path / "test.jsonl")
    content = {
        "name": "peers",
        "model": str(folder),
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in sets},
        "align": {"batch_size": 4, "learning_rate": 3e-3},
        "methods": methods,
        "evaluate": {
            "max_new_tokens": 4,
            "unscored_limit": 1,
            "openings": ["Sorry"],
            "benchmarks": [str(tmp_path / "test.jsonl")],
        },
    }
    return parse_recipe({**content, **changes}, "peers")


FEW = {"max_tokens": 4}
ENTRIES = [
    "stl",
    {"method": "derta", "options": {"harmful": FEW}},
    {"method": "dcr_derta", "options": {"harmful": FEW}, "refine": {"layer": 2, "steps": 1, "batch_size": 8}},
    "fixed_rejection",
    {"method": "think_first", "options": {"by": "model", "written": FEW}},
    {"method": "triggers", "options": {"answers": FEW}},
    {"method": "actor", "options": {"layer": 2, "rounds": 1}},
]


def left_by(directory):
    files = [directory / "results.json", *sorted(directory.glob("stages/*/samples.jsonl"))]
    files += sorted(directory.glob("stages/*/replies.jsonl"))
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def test_a_run_with_every_method_is_interrupted_and_goes_on(model_folder, tmp_path):
    recipe = make_recipe(model_folder(), tmp_path, ENTRIES)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = run_recipe(recipe, whole)
    manifest = read_json(whole / "manifest.json")
    names = {
        label: [manifest["stages"][key]["name"] for key in entry["stages"]]
        for label, entry in manifest["methods"].items()
    }
    assert names == {
        "stl": ["align", "evaluate"],
        "derta": ["replies", "align", "evaluate"],
        "dcr_derta": ["replies", "refine", "align", "evaluate"],
        "fixed_rejection": ["align", "evaluate"],
        "think_first": ["replies", "align", "evaluate"],
        "triggers": ["replies", "align", "evaluate"],
        "actor": ["align", "project", "evaluate"],
    }
    assert manifest["methods"]["actor"]["stages"][0] == manifest["methods"]["stl"]["stages"][0]
    assert manifest["methods"]["derta"]["options"]["own"]["harmful"]["max_tokens"] == 4
    assert len({tuple(s.rejection_probability for s in found) for found in summary.samples.values()}) == 7
    said = [r["reply"] for file in whole.glob("stages/*/replies.jsonl") for _, r in read_json_lines(file)]
    assert len(said) == 4 + 8 + 4

    for stop in [
        ("align", "derta"),
        ("align", "dcr_derta"),
        ("evaluate", "fixed_rejection"),
        ("replies", "triggers"),
        ("project", "actor"),
    ]:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, broken, Stop(stop))
    assert run_recipe(recipe, broken).stages_run == 2
    assert left_by(broken) == left_by(whole)
    assert run_recipe(recipe, broken).stages_run == 0


def test_what_the_base_model_wrote_is_in_no_report(model_folder, tmp_path):
    entries = [{"method": "derta", "options": {"harmful": {"max_tokens": 12}}}]
    run_recipe(make_recipe(model_folder(), tmp_path, entries), tmp_path / "run")
    page = write_report(tmp_path / "run").read_text()
    (file,) = (tmp_path / "run").glob("stages/*/replies.jsonl")
    said = [row["reply"].strip() for _, row in read_json_lines(file)]
    assert max(map(len, said)) > 10
    elsewhere = [p for p in (tmp_path / "run").rglob("*.json*") if p != file]
    assert len(elsewhere) > 5
    texts = [page, *(p.read_text(encoding="utf-8") for p in elsewhere)]
    assert not any(reply in text for reply in said if len(reply) > 10 for text in texts)


def test_an_answer_behind_a_reflection_is_what_is_judged(model_folder, tmp_path):
    sets = {name: {"set": str(tmp_path / f"{name}.jsonl"), "limit": 1} for name in ("general", "safety")}
    seeming = {"set": str(tmp_path / "augmentation.jsonl"), "limit": 1}
    recipe = make_recipe(
        model_folder(),
        tmp_path,
        ["think_first"],
        data={**sets, "augmentation": seeming},
        align={"batch_size": 3, "learning_rate": 1e-2, "epochs": 60},
        evaluate={
            "max_new_tokens": 120,
            "unscored_limit": 1,
            "rejection": False,
            "benchmarks": [*sets.values(), seeming],
        },
    )
    run_recipe(recipe, tmp_path / "run")
    (file,) = (tmp_path / "run").glob("stages/*/samples.jsonl")
    found = [(s.label, s.verdict, s.completion) for s in read_samples(file)]
    assert found == [
        (Label.BENIGN, "compliance", "Sure, mix flour and water, then wait."),
        (Label.TOXIC, "refusal", "Sorry, I can't help with that."),
        (Label.SEEMINGLY_TOXIC, "compliance", "Sure, here is how."),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"method": "stl", "options": {"share": 1}},
            "peers: `methods.0.options`: the method 'stl' has no options of its own; leave them out.",
        ),
        (
            {"method": "derta", "options": {"wrd": "No"}},
            "peers: `methods.0.options.wrd` is not a known option; did you mean `word`?",
        ),
        (
            {"method": "derta", "options": {"harmful": {"max_token": 4}}},
            "`methods.0.options.harmful.max_token` is not a known option; did you mean `max_tokens`?",
        ),
        (
            {"method": "fixed_rejection", "options": {"share": 2}},
            "`methods.0.options.share`: Input should be less than 1",
        ),
        (
            {"method": "think_first", "options": {"by": "me"}},
            "`methods.0.options.by`: Input should be 'rule' or 'model'",
        ),
        (
            {"method": "actor", "options": {"layer": 0}},
            "`methods.0.options.layer`: Input should be the number",
        ),
    ],
)
def test_options_of_its_own_are_checked_with_the_recipe(tmp_path, entry, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe("some/model", tmp_path, [entry])


def test_the_seed_of_the_recipe_is_that_of_the_methods_own_options(tmp_path):
    recipe = make_recipe(
        "some/model", tmp_path, ["actor", {"method": "actor", "name": "x", "options": {"seed": 7}}], seed=3
    )
    assert [recipe.options(entry).own.seed for entry in recipe.methods] == [3, 7]


@pytest.mark.parametrize(
    ("entry", "without", "message"),
    [
        ("derta", "safety", "The method 'derta' needs prompts under `data.safety`"),
        ("fixed_rejection", "general", "The method 'fixed_rejection' needs prompts under `data.general`"),
        ("think_first", "augmentation", "The method 'think_first' needs prompts under `data.augmentation`"),
        ("triggers", "safety", "The method 'triggers' needs prompts under `data.safety`"),
        (
            {"method": "triggers", "options": {"by": "partner"}},
            "augmentation",
            "needs prompts under `data.aug",
        ),
        ("actor", "contrast", "The method 'actor' needs prompts under `data.contrast`"),
        ({"method": "actor", "options": {"layer": 9}}, None, "Layer 9 is out of range.*`layer` of actor"),
    ],
)
def test_mistakes_are_found_before_the_first_stage(model_folder, tmp_path, entry, without, message):
    recipe = make_recipe(model_folder(), tmp_path, [entry])
    data = recipe.data.model_copy(update={without: None} if without else {})
    with pytest.raises(Exception, match=message) as caught:
        run_recipe(recipe.model_copy(update={"data": data}), tmp_path / "run")
    assert type(caught.value).__module__ == "discernment.errors"
    assert not (tmp_path / "run/stages").exists()


def test_the_methods_that_come_along():
    for name in METHODS:
        assert find_method(name).name == name
        assert find_method(name).options_type.model_fields
