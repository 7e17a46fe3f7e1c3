"""A whole recipe on a tiny model: what it leaves, that it is done once, and that it goes on where it was."""

import json
import os
from datetime import UTC, datetime

import pytest

from discernment.diagnosis.proposition import measure_proposition
from discernment.diagnosis.refinement_effect import PropositionResults, compare_propositions
from discernment.errors import DiscernmentError
from discernment.evaluation.results import Results
from discernment.evaluation.sample import read_samples
from discernment.files import file_hash, read_json, read_json_lines
from discernment.kernel.kernel import KernelOptions
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet, Provenance
from discernment.reporting.pages.run import write_report
from discernment.runs.manifest import policy_of
from discernment.runs.recipe import parse_recipe, read_recipe
from discernment.runs.run import run_recipe
from heard import Stop
from tiny import make_benign, make_prompts

METHODS = ["base", "stl", "stl_aug", "dcr"]
EVERYTHING = ["evaluate", "align", "evaluate", "align", "evaluate", "refine", "align", "evaluate"]


def contents(directory):
    return {
        str(p.relative_to(directory)): (p.stat().st_mtime_ns, file_hash(p))
        for p in directory.rglob("*")
        if p.is_file() and p.name != "run.lock"
    }


def outcome(directory):
    """The bytes that must not depend on interruptions: results and samples, by place."""
    samples = sorted(directory.glob("stages/*/samples.jsonl"))
    return {str(p.relative_to(directory)): p.read_bytes() for p in [directory / "results.json", *samples]}


def test_a_recipe_from_base_model_to_results(recipe, tmp_path):
    directory, heard = tmp_path / "run", Stop()
    summary = run_recipe(recipe, directory, heard)

    stages = [event for event in heard.events if isinstance(event[2], bool)]
    assert [name for name, _, _ in stages] == EVERYTHING
    assert list(dict.fromkeys(owner for _, owner, _ in stages)) == METHODS
    assert not any(reused for _, _, reused in stages)
    assert summary.stages_run == len(EVERYTHING)
    # Of the eight benign prompts, general has b0 to b5 and the benchmark b4 to b7.
    assert summary.seen_in_training == {str(tmp_path / "easy.jsonl"): 2}
    assert read_recipe(directory / "recipe.yaml") == recipe

    results = Results.model_validate(read_json(directory / "results.json"))
    assert results == summary.results
    assert (results.methods, results.reference) == (METHODS, "stl")
    assert {(s.method, s.label) for s in results.scores} == {(m, label) for m in METHODS for label in Label}

    manifest = read_json(directory / "manifest.json")
    assert (manifest["name"], manifest["status"]) == ("tiny", "complete")
    assert manifest["seen_in_training"] == summary.seen_in_training
    assert all(datetime.fromisoformat(manifest[when]).tzinfo is UTC for when in ("created", "finished"))
    assert set(manifest["stages"]) == {p.name for p in (directory / "stages").iterdir()}
    assert [len(manifest["methods"][m]["stages"]) for m in METHODS] == [1, 2, 2, 3]
    completions = {}
    for method in METHODS:
        entry = manifest["methods"][method]
        assert all(method in manifest["stages"][stage]["methods"] for stage in entry["stages"])
        model = entry["policy"]["model"]["model"]
        assert model.startswith("./stages/") == (method != "base")  # a run can be moved
        assert (directory / model / "model.safetensors").is_file()
        assert policy_of(directory, method).model.model == os.path.normpath(directory / model)
        samples = read_samples(directory / "stages" / entry["stages"][-1] / "samples.jsonl")
        assert len(samples) == 16
        completions[method] = tuple((s.completion, s.rejection_probability) for s in samples)
    assert len(set(completions.values())) == len(METHODS)
    assert manifest["methods"]["dcr"]["options"]["refine"]["steps"] == 2
    aligned = [s for s in manifest["stages"].values() if s["name"] == "align"]
    assert [s["steps"] for s in aligned] == [3, 5, 3]
    assert all(s["seconds"] >= 0 and s["tokens"] > 0 for s in manifest["stages"].values())

    before = contents(directory)
    again = run_recipe(recipe, directory)
    assert (again.stages_run, again.results) == (0, results)
    after = contents(directory)
    changed = {name for name in before if before[name][1] != after[name][1]}
    assert before.keys() == after.keys()
    assert changed <= {"manifest.json"}  # which says when
    assert {name for name in before if name.startswith("stages/") and before[name] != after[name]} == set()

    # A further method and a new option of one stage: what is there already is taken.
    more = parse_recipe(
        {
            **json.loads(recipe.model_dump_json(exclude_defaults=True)),
            "methods": [*METHODS, {"method": "dcr", "name": "dcr-free", "align": {"frozen_layers": 0}}],
        },
        "more",
    )
    assert run_recipe(more, directory).stages_run == 2
    manifest = read_json(directory / "manifest.json")
    refined = manifest["methods"]["dcr-free"]["stages"][0]
    assert manifest["stages"][refined]["methods"] == ["dcr", "dcr-free"]


def test_a_layer_that_is_found_is_in_the_manifest_with_its_reason(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content = {**content, "methods": ["dcr"], "refine": {**content["refine"], "layer": "auto"}}
    run_recipe(parse_recipe(content, "auto"), tmp_path / "run")
    manifest = read_json(tmp_path / "run/manifest.json")
    (refined,) = (s for s in manifest["stages"].values() if s["name"] == "refine")
    assert manifest["methods"]["dcr"]["options"]["refine"]["layer"] == "auto"
    assert refined["notes"]["layer"] in (1, 2, 3)
    assert refined["notes"]["layer_reason"].startswith(f"Layer {refined['notes']['layer']} ")
    (aligned,) = (s for s in manifest["stages"].values() if s["name"] == "align")
    assert aligned["inputs"]["options"]["frozen_layers"] == refined["notes"]["layer"]


def test_watched_stages_are_stages_of_their_own_with_the_same_models(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True) | {"methods": ["dcr"]}
    plain = run_recipe(parse_recipe(content, "plain"), tmp_path / "run")
    probes = content["evaluate"]["benchmarks"]
    watch = {"probes": [{"set": b["set"]} for b in probes], "dynamics": {"per_group": 2, "k": 2}}
    watched = run_recipe(parse_recipe(content | {"diagnose": watch}, "watched"), tmp_path / "run")
    assert watched.stages_run == 3
    assert watched.results == plain.results
    assert watched.seen_in_training == plain.seen_in_training
    looks = sorted((tmp_path / "run/stages").glob("*/dynamics.jsonl"))
    assert [path.parent.name.partition("-")[0] for path in looks] == ["align", "refine"]
    assert [[row["step"] for _, row in read_json_lines(path)] for path in looks] == [[0, 1, 2, 3], [0, 1, 2]]


def test_an_interrupted_run_ends_with_the_same_bytes(recipe, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_recipe(recipe, whole)
    # in the middle of the second evaluation, before a training, and in the middle of the last evaluation
    asking = "replies and rejection probabilities"
    stops = [(asking, 8, 2), ("align", "stl_aug", False), (asking, 8, 4)]
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, broken, Stop(stop))
        assert not (broken / "results.json").exists()
        assert read_json(broken / "manifest.json")["status"] == "running"
    assert [p.name.startswith("evaluate-") for p in (broken / "stages").glob("*.part")] == [True]
    assert run_recipe(recipe, broken).stages_run == 1
    assert outcome(broken) == outcome(whole)
    assert len(outcome(whole)) == 1 + len(METHODS)
    assert list((broken / "stages").glob("*.part")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {}}, "The method 'stl' needs prompts under `data.general`"),
        ({"refine": {}}, "`refine.layer` is missing; name the layer that dcr trains up to"),
        ({"refine": {"layer": 9}}, "Layer 9 is out of range: the model has 4 layers.*change `layer` of dcr"),
        (
            {"refine": {"layer": "auto"}, "align": {"frozen_layers": 7}},
            "Layer 7 is out of range.*change `frozen_layers` of stl",
        ),
        ({"align": {"frozen_layers": 7}}, "Layer 7 is out of range.*change `frozen_layers` of stl"),
        ({"refine": {"layer": 4}}, "dcr holds all 4 layers in stage 2, which leaves nothing to train"),
        ({"data": "silent"}, "has no response, and stl trains on it"),
        ({"evaluate": {"openings": "xx"}}, "no refusal openings for 'xx'"),
        ({"diagnose": {"probes": "starter/benign"}}, "The probe prompts .* need a toxic one"),
        (
            {"diagnose": {"probes": {"set": "starter/toxic", "limit": 20}, "proposition": True}},
            "proposition is too small for Proposition 1.*toxic and seemingly toxic ones among them",
        ),
    ],
)
def test_mistakes_are_found_before_the_first_stage(recipe, tmp_path, changes, message):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    for key, value in changes.items():
        if value == "silent":
            mute = tmp_path / "mute.jsonl"
            make_prompts(4, responses=False).to_jsonl(mute)
            value = {**content["data"], "safety": str(mute)}
        content[key] = {**content[key], **value} if key == "evaluate" else value
    directory = tmp_path / "run"
    with pytest.raises(DiscernmentError, match=message):
        run_recipe(parse_recipe(content, "r"), directory)
    assert not directory.exists()


def test_proposition_1_is_measured_before_and_after_stage_1(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    methods = ["base", "dcr", {"method": "dcr", "name": "held", "align": {"frozen_layers": 2}}]
    content |= {"methods": methods, "refine": {**content["refine"], "layer": "auto"}}
    asked = tmp_path / "asked.jsonl"
    PromptSet([*make_prompts(8), *make_benign(4)], Provenance(name="asked")).to_jsonl(asked)
    plan = {
        "probes": [{"set": str(tmp_path / "contrast.jsonl")}],
        "dynamics": {"per_group": 2, "k": 2, "most_looks": 3},
        "proposition": {"prompts": str(asked), "k": 2},
    }
    theory = parse_recipe(content | {"diagnose": plan}, "theory")
    heard = Stop()
    summary = run_recipe(theory, tmp_path / "run", heard)
    measured = [event for event in heard.events if event[0] == "proposition"]
    assert measured == [
        ("proposition", "dcr", False),
        ("proposition", "dcr", False),
        ("proposition", "held", True),
        ("proposition", "held", True),
    ]

    manifest = read_json(tmp_path / "run/manifest.json")
    (refined,) = (key for key, stage in manifest["stages"].items() if stage["name"] == "refine")
    layer = manifest["stages"][refined]["notes"]["layer"]
    found = PropositionResults.model_validate(read_json(tmp_path / "run/proposition.json"))
    (entry,) = found.refinements
    assert entry.methods == ["dcr", "held"]
    assert entry.before.layer == entry.after.layer == entry.comparison.layer == layer
    assert (entry.before.model, entry.after.model) == (recipe.model.model, refined)
    assert entry.before.options == KernelOptions(k=2)
    assert set(entry.before.clusters) < {p.id for p in PromptSet.from_jsonl(asked)}
    for name in ("dcr", "held"):
        stages = manifest["methods"][name]["stages"]
        assert [key.partition("-")[0] for key in stages][-2:] == ["proposition"] * 2
    assert not any(key.startswith("proposition") for key in manifest["methods"]["base"]["stages"])

    spec = PolicySpec.read(tmp_path / "run/stages" / refined)
    options = entry.before.options
    again = [
        measure_proposition(Policy.load(model, check.model), PromptSet.from_jsonl(asked), layer, options)
        for model, check in ((recipe.model, entry.before), (spec, entry.after))
    ]
    assert again == [entry.before, entry.after]
    assert compare_propositions(*again) == entry.comparison

    assert run_recipe(theory, tmp_path / "run").stages_run == 0
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert 'id="dynamics"' in page
    assert 'id="proposition"' in page
    del plan["proposition"]
    without = run_recipe(parse_recipe(content | {"diagnose": plan}, "without"), tmp_path / "run")
    assert without == summary._replace(stages_run=0)
    assert not (tmp_path / "run/proposition.json").exists()
