"""Methods of one run: what they share, and what stands on what."""

from pathlib import Path

import pytest

from discernment.diagnosis.refinement_effect import PropositionResults
from discernment.errors import DiscernmentError, ModelError, RecipeError
from discernment.files import read_json
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import PromptSet, Provenance
from discernment.reporting.pages.run import write_report
from discernment.reporting.run_files import read_run
from discernment.runs.manifest import policy_of
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from heard import Stop
from tiny import make_benign, make_prompts


def test_methods_with_rules_run_beside_the_others(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    methods = ["stl", {"method": "prompted", "rule": {"system": "I cannot."}}, "ablated"]
    summary = run_recipe(parse_recipe({**content, "methods": methods}, "rules"), tmp_path / "run")
    found = {name: [s.rejection_probability for s in samples] for name, samples in summary.samples.items()}
    assert len({tuple(values) for values in found.values()}) == 3
    for name in ("prompted", "ablated"):
        policy = Policy.load(policy_of(tmp_path / "run", name))
        assert policy.rule.name == name
        texts = [s.prompt for s in summary.samples[name]]
        assert rejection_probability(policy, texts, recipe.evaluate.openings) == pytest.approx(
            found[name], rel=1e-4
        )
    manifest = read_json(tmp_path / "run/manifest.json")
    kinds = {name: [s.partition("-")[0] for s in m["stages"]] for name, m in manifest["methods"].items()}
    assert kinds["ablated"] == ["align", "direction", "evaluate"]
    assert manifest["methods"]["stl"]["stages"][0] == manifest["methods"]["ablated"]["stages"][0]
    assert (
        run_recipe(parse_recipe({**content, "methods": methods}, "rules"), tmp_path / "run").stages_run == 0
    )


def test_methods_on_dcr_share_its_stages(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [
        "dcr",
        {"method": "self_cd", "name": "dcr + self_cd", "on": "dcr"},
        {"method": "adacd", "on": "dcr", "rule": {"plausible": 0.5}},
        {"method": "scans", "on": "dcr", "rule": {"strength": 8}},
        {"method": "surgical", "on": "dcr"},
        {"method": "surgical", "name": "folded", "on": "dcr", "rule": {"weights": True}},
        {"method": "self_cd", "name": "folded + self_cd", "on": "folded"},
    ]
    stacked = parse_recipe(content, "stacked")
    summary = run_recipe(stacked, tmp_path / "run")
    manifest = read_json(tmp_path / "run/manifest.json")
    stages = {name: m["stages"] for name, m in manifest["methods"].items()}
    kinds = {name: [s.partition("-")[0] for s in of[2:]] for name, of in stages.items()}
    assert kinds == {
        "dcr": ["evaluate"],
        "dcr + self_cd": ["evaluate"],
        "adacd": ["evaluate"],
        "scans": ["vectors", "evaluate"],
        "surgical": ["false_refusal", "evaluate"],
        "folded": ["false_refusal", "fold", "evaluate"],
        "folded + self_cd": ["false_refusal", "fold", "evaluate"],
    }
    assert all(of[:2] == stages["dcr"][:2] for of in stages.values())
    assert summary.stages_run == 2 + 7 + 3
    found = {name: [s.rejection_probability for s in samples] for name, samples in summary.samples.items()}
    assert found["folded"] == pytest.approx(found["surgical"], rel=1e-3)
    assert len({tuple(v) for name, v in found.items() if name != "folded"}) == len(found) - 1
    for name, rule in (("scans", "scans"), ("folded", None), ("folded + self_cd", "self_cd")):
        policy = Policy.load(policy_of(tmp_path / "run", name))
        assert (policy.rule and policy.rule.name) == rule
        texts = [s.prompt for s in summary.samples[name]]
        again = rejection_probability(policy, texts, recipe.evaluate.openings)
        assert again == pytest.approx(found[name], rel=1e-4)
    assert run_recipe(stacked, tmp_path / "run").stages_run == 0


def test_methods_in_several_strengths_are_compared_along_their_frontiers(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [
        "stl",
        {"method": "stl_aug", "name": "weak", "align": {"learning_rate": 1e-5}},
        {"method": "stl", "name": "stl again", "align": {"learning_rate": 1e-5}},
        "stl_aug",
        {"method": "scans", "on": "stl again"},
        {"method": "self_cd", "name": "usual"},
        {"method": "self_cd", "on": "stl"},
    ]
    content["evaluate"]["reference"] = "stl again"
    results = run_recipe(parse_recipe(content, "strengths"), tmp_path / "run").results
    rows = [(row.method, row.against, row.lines, row.lines_against) for row in results.frontiers]
    # For each label of harmless prompts; what a method usually stands on need not be named.
    assert rows == [(method, "stl", 2, 2) for method in ("weak", "usual") for _ in range(2)]
    assert 'id="frontiers"' in write_report(tmp_path / "run").read_text(encoding="utf-8")


def test_restarts_share_stage_1_with_a_single_one(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["data"]["contrast_validation"] = content["data"]["contrast"]
    content["refine"]["seed"] = 3
    content["methods"] = [
        "dcr",
        {"method": "dcr", "name": "mean", "options": {"restarts": 3}},
        {"method": "dcr", "name": "best", "options": {"restarts": 3, "combine": "best"}},
        {"method": "self_cd", "on": "best"},
    ]
    restarted = parse_recipe(content, "restarts")
    summary = run_recipe(restarted, tmp_path / "run")
    manifest = read_json(tmp_path / "run/manifest.json")
    stages = {name: m["stages"] for name, m in manifest["methods"].items()}

    def of_kind(method, kind):
        return [stage for stage in stages[method] if stage.partition("-")[0] == kind]

    refined = of_kind("mean", "refine")
    seeds = [manifest["stages"][stage]["inputs"]["options"]["seed"] for stage in refined]
    assert seeds == [3, 1003, 2003]
    assert of_kind("best", "refine") == of_kind("self_cd", "refine") == refined
    assert of_kind("dcr", "refine") == refined[:1]
    assert [len(of_kind(method, "average")) for method in stages] == [0, 1, 0, 0]
    [choice] = of_kind("best", "choose")
    # What is chosen is named, not copied: the first shares stage 2 with `dcr`.
    first = manifest["stages"][choice]["notes"]["chosen"] == 1
    assert (of_kind("best", "align") == of_kind("dcr", "align")) == first
    assert len({*of_kind("dcr", "align"), *of_kind("mean", "align")}) == 2
    of_mean, of_best = (
        {s.prompt_id: s.rejection_probability for s in summary.samples[m]} for m in ("mean", "best")
    )
    assert of_mean != of_best
    shown = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert all(f", seed {seed}.</b>" in shown for seed in seeds)
    asked = tmp_path / "asked.jsonl"
    PromptSet([*make_prompts(8), *make_benign(4)], Provenance(name="asked")).to_jsonl(asked)
    content["diagnose"] = {"proposition": {"prompts": str(asked), "k": 2}}
    run_recipe(parse_recipe(content, "proposition"), tmp_path / "run")
    checks = PropositionResults.model_validate(read_json(tmp_path / "run/proposition.json")).refinements
    expected = {refined[0]: {"dcr"}, of_kind("mean", "average")[0]: {"mean"}}
    at = manifest["stages"][choice]["notes"]["chosen"] - 1
    expected.setdefault(refined[at], set()).update({"best", "self_cd"})
    assert {check.after.model: set(check.methods) for check in checks} == expected
    moved = policy_of((tmp_path / "run").rename(tmp_path / "moved"), "best")
    texts = [s.prompt for s in summary.samples["best"]]
    found = rejection_probability(Policy.load(moved), texts, recipe.evaluate.openings)
    assert found == pytest.approx([s.rejection_probability for s in summary.samples["best"]], rel=1e-4)
    assert run_recipe(restarted, tmp_path / "moved").stages_run == 0


def test_an_aligned_model_may_be_refined(recipe, tmp_path):
    asked = tmp_path / "asked.jsonl"
    PromptSet([*make_prompts(8), *make_benign(4)], Provenance(name="asked")).to_jsonl(asked)
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [
        {"method": "dcr", "name": "mended", "on": "stl"},
        {"method": "stl", "name": "stl twice", "on": "stl"},
        {"method": "derta", "on": "stl", "options": {"harmful": {"max_tokens": 4}}},
        "stl",
        "dcr",
    ]
    content["diagnose"] = {
        "probes": [{"set": str(tmp_path / "contrast.jsonl")}],
        "dynamics": {"per_group": 2, "k": 2, "most_looks": 3},
        "proposition": {"prompts": str(asked), "k": 2},
    }
    summary = run_recipe(parse_recipe(content, "mend"), tmp_path / "run")
    manifest = read_json(tmp_path / "run/manifest.json")
    stages = {
        name: [key for key in m["stages"] if key.partition("-")[0] in ("refine", "align", "replies")]
        for name, m in manifest["methods"].items()
    }
    [aligned] = stages["stl"]
    assert [key.partition("-")[0] for key in stages["mended"]] == ["align", "refine", "align"]
    assert [of[0] for of in (stages["mended"], stages["stl twice"], stages["derta"])] == [aligned] * 3
    assert len({aligned, *stages["mended"], stages["stl twice"][1], *stages["dcr"]}) == 6
    started = {key: manifest["stages"][key]["inputs"]["start"] for of in stages.values() for key in of}
    base, refined = started[aligned], stages["mended"][1]
    assert started[stages["dcr"][0]] == started[stages["derta"][1]] == base  # which writes the replies
    assert started[refined] == started[stages["stl twice"][1]] == started[stages["derta"][2]] != base
    replies = {name: [s.rejection_probability for s in of] for name, of in summary.samples.items()}
    assert len({tuple(of) for of in replies.values()}) == len(replies) == 5
    checks = PropositionResults.model_validate(read_json(tmp_path / "run/proposition.json")).refinements
    found = {tuple(check.methods): (check.before.model, check.after.model) for check in checks}
    assert found == {
        ("mended",): (aligned, refined),
        ("dcr",): (recipe.model.model, stages["dcr"][0]),
    }
    run = read_run(tmp_path / "run")
    own = [(watch.stage, watch.methods) for watch in run.watches]
    trained = [("refine", ["mended"]), *(("align", [name]) for name in ("mended", "stl twice", "derta"))]
    assert own == [("align", ["stl"]), *trained, ("refine", ["dcr"]), ("align", ["dcr"])]
    assert [history.methods for history in run.alignments] == [of for stage, of in own if stage == "align"]


def test_refusals_are_calibrated_on_what_was_trained(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["data"]["contrast_validation"] = content["data"]["contrast"]
    content["methods"] = [
        "stl",
        "calibrated",
        "dcr",
        {"method": "calibrated", "name": "calibrated dcr", "on": "dcr"},
    ]
    summary = run_recipe(parse_recipe(content, "calibrated"), tmp_path / "run")
    stages = {name: m["stages"] for name, m in read_json(tmp_path / "run/manifest.json")["methods"].items()}
    for below, above in (("stl", "calibrated"), ("dcr", "calibrated dcr")):
        assert [key.partition("-")[0] for key in stages[above]][-2:] == ["calibration", "evaluate"]
        assert set(stages[above]) & set(stages[below]) == set(stages[below][:-1])
        policy = Policy.load(policy_of(tmp_path / "run", above))
        samples = summary.samples[above]
        again = rejection_probability(policy, [s.prompt for s in samples], recipe.evaluate.openings)
        assert again == pytest.approx([s.rejection_probability for s in samples], rel=1e-4)
        assert again != pytest.approx([s.rejection_probability for s in summary.samples[below]], rel=1e-4)


@pytest.mark.parametrize(("below", "above"), [(1, 2), (2, 1)])
@pytest.mark.thinned(2)
def test_the_proposition_knows_what_each_refinement_started_from(recipe, tmp_path, below, above):
    asked = tmp_path / "asked.jsonl"
    PromptSet([*make_prompts(8), *make_benign(4)], Provenance(name="asked")).to_jsonl(asked)
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    again = {"method": "dcr", "name": "again", "on": "dcr", "refine": {"layer": 1}}
    content["methods"] = [
        {"method": "dcr", "options": {"restarts": below}},
        again | {"options": {"restarts": above}},
    ]
    content["diagnose"] = {"proposition": {"prompts": str(asked), "k": 2}}
    run_recipe(parse_recipe(content, "twice"), tmp_path / "run")
    manifest = read_json(tmp_path / "run/manifest.json")
    stages = {name: m["stages"] for name, m in manifest["methods"].items()}
    # After stage 1 an alignment follows, and what it starts from is what was refined.
    aligned = [key for key in stages["again"] if key.startswith("align-")]
    refined = [stages["again"][stages["again"].index(key) - 1] for key in aligned]
    checks = PropositionResults.model_validate(read_json(tmp_path / "run/proposition.json")).refinements
    found = [(check.methods, check.before.model, check.after.model, check.after.layer) for check in checks]
    assert found == [
        (["dcr", "again"], recipe.model.model, refined[0], 2),
        (["again"], aligned[0], refined[1], 1),
    ]


@pytest.mark.parametrize("below", [{"method": "prompted"}, {"method": "ablated"}, {"method": "surgical"}])
def test_a_second_rule_is_found_before_anything_runs(recipe, tmp_path, below):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [below, {"method": "self_cd", "on": below["method"]}]
    heard = Stop()
    with pytest.raises(RecipeError, match=f"acts by '{below['method']}'; 'self_cd' cannot be added"):
        run_recipe(parse_recipe(content, "two"), tmp_path / "run", heard)
    assert heard.events == []


@pytest.mark.parametrize("method", ["stl", "dcr", "prosafeprune", "safe_patching"])
def test_training_on_a_rule_is_found_before_anything_runs(recipe, tmp_path, method):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = ["scans", {"method": method, "name": "on it", "on": "scans"}]
    heard = Stop()
    with pytest.raises(
        ModelError, match=r"of on it starts from weights, and .* the rule 'scans'; start from"
    ):
        run_recipe(parse_recipe(content, "two"), tmp_path / "run", heard)
    assert heard.events == []


@pytest.mark.parametrize(("method", "option"), [("ablated", "last_layer"), ("scans", "first_layer")])
def test_a_layer_that_there_is_not_is_found_before_anything_runs(recipe, tmp_path, method, option):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["methods"] = [{"method": method, "rule": {option: 9}}]
    heard = Stop()
    with pytest.raises(DiscernmentError, match=f"Layer 9 is out of range: .* change `{option}` of {method}"):
        run_recipe(parse_recipe(content, "deep"), tmp_path / "run", heard)
    assert heard.events == []


def test_a_run_goes_on_with_kept_adapters(recipe, tmp_path):
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    lora = {"lora": {"rank": 2, "keep": "adapter"}}
    content |= {
        "methods": ["dcr"],
        "refine": {**content["refine"], **lora},
        "align": {**content["align"], **lora},
    }
    summary = run_recipe(parse_recipe(content, "lora"), tmp_path / "run")
    policy = policy_of(tmp_path / "run", "dcr")
    assert policy.model.model == recipe.model.model
    stages = [Path(adapter).parent.name.partition("-")[0] for adapter in policy.adapters]
    assert stages == ["refine", "align"]
    moved = policy_of((tmp_path / "run").rename(tmp_path / "moved"), "dcr")
    texts = [s.prompt for s in summary.samples["dcr"]]
    found = rejection_probability(Policy.load(moved), texts, recipe.evaluate.openings)
    assert found == pytest.approx([s.rejection_probability for s in summary.samples["dcr"]], rel=1e-4)
