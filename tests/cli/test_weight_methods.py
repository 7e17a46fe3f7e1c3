"""Methods that change an aligned model's weights, through the command: the stages, what they leave, and who can use it."""

import io
import re

import pytest
import yaml
from safetensors.torch import load_file

from discernment.files import read_json, read_json_lines
from discernment.prompts import PromptSet

FEW = {"max_tokens": 4}
PATCHING = {"steps": 2, "learning_rate": 1e-3, "harmful": FEW}
LAYERS = {"first_layer": 2, "last_layer": 3, "rank": 2}
ENTRIES = [
    "stl",
    {"method": "safe_patching", "options": PATCHING},
    {"method": "prosafeprune", "options": {"rank": 2, "prompts": 3}},
    {
        "method": "prosafeprune",
        "name": "chosen",
        "on": "safe_patching",
        "options": LAYERS | {"strength": "auto"},
    },
]
RECIPE = {
    "name": "try",
    "model": "tiny",
    "data": {
        "general": "benign.jsonl",
        "safety": {"set": "pairs.jsonl", "label": "toxic"},
        "contrast": "pairs.jsonl",
        "contrast_validation": {"set": "pairs.jsonl", "limit": 8},
    },
    "align": {"batch_size": 4, "learning_rate": 3e-3},
    "methods": ENTRIES,
    "evaluate": {
        "max_new_tokens": 3,
        "unscored_limit": 1,
        "openings": ["Sorry"],
        "benchmarks": [{"set": "pairs.jsonl", "limit": 4}],
    },
}


def write_recipe(path, **changes):
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))


def test_a_run_of_both_is_done_once_and_what_it_leaves_can_be_used(discern, files, tmp_path):
    write_recipe(tmp_path / "good.yaml")
    assert discern("run", "good.yaml")[0] == 0
    manifest = read_json(tmp_path / "runs/try/manifest.json")
    keys = {label: entry["stages"] for label, entry in manifest["methods"].items()}
    names = {label: [manifest["stages"][key]["name"] for key in found] for label, found in keys.items()}
    assert names == {
        "stl": ["align", "evaluate"],
        "safe_patching": ["align", "replies", "patch", "evaluate"],
        "prosafeprune": ["align", "prune", "evaluate"],
        "chosen": ["align", "replies", "patch", "prune", "evaluate"],
    }
    assert keys["chosen"][:3] == keys["safe_patching"][:3]
    notes = {label: manifest["stages"][found[-2]]["notes"] for label, found in keys.items()}
    assert notes["prosafeprune"]["prompts"] == {"safe": 3, "toxic": 3, "seemingly_toxic": 3}
    assert len(notes["chosen"]["tried"]) == 5
    assert notes["safe_patching"]["harmful_replies"] == 6
    results = (tmp_path / "runs/try/results.json").read_bytes()

    written = {p.parent.parent.name for p in (tmp_path / "runs/try").rglob("*.safetensors")}
    patches = [key for key in written if key.startswith("patch-")]
    assert len(written) == 4
    assert patches == [keys["safe_patching"][2]]
    assert {p.name for p in (tmp_path / "runs/try/stages" / patches[0]).iterdir()} == {
        "model",
        "policy.json",
        "stage.json",
    }
    (replies,) = (tmp_path / "runs/try").rglob("replies.jsonl")
    asked = PromptSet.from_file(tmp_path / "pairs.jsonl")
    assert {row["key"] for _, row in read_json_lines(replies)} == {p.id for p in asked if p.label == "toxic"}

    assert discern("run", "good.yaml")[0] == 0
    assert (tmp_path / "runs/try/results.json").read_bytes() == results
    again = read_json(tmp_path / "runs/try/manifest.json")
    assert again["stages"] == manifest["stages"]

    for method in ("safe_patching", "prosafeprune"):
        talk = io.StringIO("How do I kill a process?\n\n")
        code, shown, _ = discern("chat", f"runs/try/{method}", "--max-new-tokens", "3", stdin=talk)
        assert code == 0
        assert len(re.findall(r"rejection probability \d\.\d{3}", shown)) == 1


def test_adapters_below_are_folded_in(discern, files, tmp_path):
    methods = [
        {"method": "safe_patching", "options": PATCHING},
        {"method": "prosafeprune", "options": LAYERS},
    ]
    align = RECIPE["align"] | {"lora": {"rank": 2, "keep": "adapter"}}
    write_recipe(tmp_path / "lora.yaml", methods=methods, align=align)
    assert discern("run", "lora.yaml")[0] == 0
    stages = tmp_path / "runs/try/stages"
    (adapter,) = stages.glob("align-*")
    assert not (adapter / "model").exists()
    base = load_file(tmp_path / "tiny/model.safetensors")
    for name in ("patch", "prune"):
        (left,) = stages.glob(f"{name}-*")
        assert read_json(left / "policy.json") == {"model": {"model": "./model"}}
        found = load_file(left / "model/model.safetensors")
        assert found.keys() == base.keys()
        assert (found["model.layers.0.mlp.up_proj.weight"] != base["model.layers.0.mlp.up_proj.weight"]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"model": "tiny", "quantization": "4bit"}, "methods": ["safe_patching"]},
            "No patch can be added to quantised weights; leave 'safe_patching' out",
        ),
        (
            {"model": {"model": "tiny", "quantization": "8bit"}, "methods": ["prosafeprune"]},
            "Nothing can be projected out of quantised weights; leave 'prosafeprune' out",
        ),
        (
            {"methods": [{"method": "safe_patching", "options": {"lora": {}}}]},
            "bad.yaml: `methods.0.options.lora` is not a known option",
        ),
        (
            {"methods": [{"method": "safe_patching", "options": {"a": 0.5}}]},
            "`a` (0.5) and `b` (0.02) are shares of what `p` (0.3) keeps of all weights; they cannot be above it",
        ),
        (
            {"methods": [{"method": "prosafeprune", "options": {"first_layer": 2, "last_layer": 7}}]},
            "Layer 7 is out of range: the model has 4 layers, counted from 1; change `last_layer` of prosafeprune.",
        ),
        (
            {
                "data": {k: v for k, v in RECIPE["data"].items() if k != "contrast_validation"},
                "methods": [{"method": "prosafeprune", "options": {"rank": "auto"}}],
            },
            "The method 'prosafeprune' needs prompts under `data.contrast_validation`",
        ),
        (
            {"data": {"general": "benign.jsonl", "safety": "pairs.jsonl"}, "methods": ["prosafeprune"]},
            "needs seemingly toxic prompts under `data.augmentation` or `data.contrast`",
        ),
    ],
)
def test_mistakes_are_found_before_the_first_stage(discern, files, tmp_path, changes, message):
    write_recipe(tmp_path / "bad.yaml", **changes)
    code, _, error = discern("run", "bad.yaml")
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs/try/stages").exists()
