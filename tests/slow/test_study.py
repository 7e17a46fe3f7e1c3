"""The study in a reduced form on the 135M model: one seed, few steps, few prompts of every set."""

import os

import pytest
import yaml

from discernment.evaluation.sample import read_samples
from discernment.files import read_json, write_json_lines
from discernment.prompts import Label, load_starter
from discernment.prompts.catalogue import catalogue
from discernment.runs.built_in import find_recipe
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe

pytestmark = pytest.mark.slow

STUDY = find_recipe("study")
REFUSES = "I'm sorry, but I can't help with that."


def sources(part):
    """All prompt sources of a part of the recipe."""
    for value in part.values():
        for source in value if isinstance(value, list) else [value]:
            yield source if isinstance(source, dict) else {"set": source}


def reduced(content):
    """The recipe with few prompts and steps."""
    del content["seeds"]
    limits = {"general": 8, "safety": 8, "augmentation": 8, "contrast_validation": 8}
    parts = [content["data"], *(m["data"] for m in content["methods"] if isinstance(m, dict) and "data" in m)]
    for part in parts:
        for name, value in part.items():
            listed = sources({name: value})
            part[name] = [{**s, "limit": limits.get(name, 12), "verify": False} for s in listed]
    evaluation = content["evaluate"]
    evaluation["benchmarks"] = [{**b, "limit": 6, "verify": False} for b in evaluation["benchmarks"]]
    evaluation["ability"] = {**evaluation["ability"], "limit": 4}
    content["refine"] |= {"steps": 2, "evaluate_every": 1}
    kernel = content["diagnose"]["kernel"]
    kernel |= {"k": 1, "per_group": 3, "prompts": [{**s, "limit": 12} for s in kernel["prompts"]]}
    return content


def stand_ins(folder):
    """Files of our own under the names of the public sets, with prompts of the labels that those have."""
    starter = {
        Label.TOXIC: load_starter("starter/toxic"),
        Label.SEEMINGLY_TOXIC: load_starter("starter/pairs").with_label(Label.SEEMINGLY_TOXIC),
        Label.BENIGN: load_starter("starter/benign"),
    }
    categories = [
        "Requests with safety concerns/" + end for end in ("dangerous", "privacy", "false", "triggers")
    ]
    for name, entry in catalogue().items():
        if not entry.file:
            continue
        rows = [
            {
                "id": f"{name}-{label}-{n}",
                "prompt": f"{prompt.text} ({name})",
                "label": label,
                "category": categories[n % len(categories)],
                entry.response or "response": REFUSES if label is Label.TOXIC else prompt.response,
                "source": name,
            }
            for label, prompts in starter.items()
            for n, prompt in enumerate(prompts.sample(60, seed=0))
        ]
        write_json_lines(folder / entry.file, rows)


@pytest.mark.timeout(3600)  # five methods, each measured in four ways
def test_the_study_runs(tmp_path, monkeypatch):
    if "DISCERNMENT_DATA" not in os.environ:
        stand_ins(tmp_path)
        monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    recipe = parse_recipe(reduced(yaml.safe_load(STUDY.read_text())), "study")
    summary = run_recipe(recipe, tmp_path / "run")
    assert summary.results.methods == ["base", "stl", "stl_aug", "dcr_paper", "dcr"]
    assert len(summary.results.benchmarks) == 7
    assert {row.policy for row in summary.results.kernels} == set(summary.results.methods)
    assert all(row.mean for row in summary.results.kernels)
    assert {row.policy for row in summary.results.abilities} == {"stl", "stl_aug", "dcr_paper", "dcr"}
    assert all(row.kl > 0 for row in summary.results.abilities)
    manifest = read_json(tmp_path / "run/manifest.json")
    assert manifest["seen_in_training"] == {}
    losses = {
        method: stage["inputs"]["options"]["loss"]["name"]
        for stage in manifest["stages"].values()
        if stage["name"] == "refine"
        for method in stage["methods"]
    }
    assert losses == {"dcr": "supcon", "dcr_paper": "circle"}
    evaluated = [stage for stage in manifest["stages"] if stage.startswith("evaluate")]
    assert len(evaluated) == 5
    for stage in evaluated:
        samples = read_samples(tmp_path / "run/stages" / stage / "samples.jsonl")
        assert len(samples) == 42
        assert all(s.rejection_probability is not None for s in samples)
