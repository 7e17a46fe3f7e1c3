"""The recipe of all methods in a reduced form: a tiny random model, one step, two prompts of every set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import PreTrainedTokenizerFast

from discernment.evaluation.sample import Sample, read_samples
from discernment.files import read_json, write_json_lines
from discernment.prompts import Label, load_starter
from discernment.prompts.catalogue import catalogue
from discernment.runs.built_in import find_recipe
from discernment.runs.recipe import read_recipe
from tiny import save_model

METHODS = [method.label for method in read_recipe("field").methods]
FEW = {"max_tokens": 4}
OWN = {
    "derta": {"options": {"harmful": FEW}},
    "triggers": {"options": {"answers": FEW}},
    "actor": {"options": {"rounds": 1, "layer": 2}},
    "dcr_paper": {"refine": {"layer": 2}},
    "safe_patching": {"options": {"harmful": FEW, "steps": 1}},
    # A random model refuses nothing, so that there are toxic pairs alone.
    "dpo": {"options": {"written": FEW, "harmful": FEW, "containment": None}},
    "porover": {"options": {"written": FEW, "overgenerated": FEW, "containment": None}},
}


def reduced(content, model):
    """The recipe with few prompts and steps."""
    del content["seeds"]
    content["model"] = model
    for name, value in content["data"].items():
        listed = value if isinstance(value, list) else [value]
        # `triggers` looks for words that few general prompts hold.
        content["data"][name] = [{**source, "limit": 40 if name == "general" else 8} for source in listed]
    content["refine"] |= {"layer": 1, "steps": 1, "evaluate_every": 1, "batch_size": 8}
    content["align"] |= {"max_length": 192}
    content["methods"] = [
        {
            **entry,
            **{key: {**entry.get(key, {}), **more} for key, more in OWN.get(entry["method"], {}).items()},
        }
        for entry in ({"method": m} if isinstance(m, str) else m for m in content["methods"])
    ]
    evaluation = content["evaluate"]
    evaluation["benchmarks"] = [{**b, "limit": 2, "verify": False} for b in evaluation["benchmarks"]]
    evaluation |= {
        "ability": {**evaluation["ability"], "limit": 2}, "unscored_limit": 1, "max_new_tokens": 4,
        "openings": ["Sorry"],
    }  # fmt: skip
    return content


def stand_ins(folder):
    """Files under the names of the public sets, with prompts of ours."""
    for name in (
        "xstest",
        "oktest",
        "or_bench_hard",
        "coconot_contrast",
        "advbench",
        "jailbreakbench",
        "malicious_instruct",
    ):
        entry = catalogue()[name]
        rows = [
            {
                "id": f"{name}-{label}-{n}", "prompt": f"{prompt.text} ({name})", "label": label,
                "category": "Requests with safety concerns",
            }
            for label, prompts in (
                (Label.TOXIC, load_starter("starter/toxic")),
                (Label.SEEMINGLY_TOXIC, load_starter("starter/pairs").with_label(Label.SEEMINGLY_TOXIC)),
            )
            if label in entry.labels
            for n, prompt in enumerate(prompts.sample(4, seed=0))
        ]  # fmt: skip
        write_json_lines(folder / entry.file, rows)


class Field(NamedTuple):
    """The reduced recipe and what it needs.

    Attributes:
        recipe: What it says.
        file: Where it is written.
        data: A folder for `DISCERNMENT_DATA`.
    """

    recipe: dict[str, Any]
    file: Path
    data: Path


def make_field(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Field:
    """Write the reduced recipe, its model and its sets into a folder."""
    data = folder / "data"
    data.mkdir()
    stand_ins(data)
    model = save_model(folder / "model", tokenizer, max_position_embeddings=2048)
    recipe = reduced(yaml.safe_load(find_recipe("field").read_text()), str(model))
    file = folder / "field.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return Field(recipe, file, data)


def samples_of(run: Path, method: str) -> list[Sample]:
    """What a method's policy replied in a run."""
    stages = read_json(run / "manifest.json")["methods"][method]["stages"]
    (evaluated,) = (stage for stage in stages if stage.startswith("evaluate-"))
    return read_samples(run / "stages" / evaluated / "samples.jsonl")
