"""A recipe of all four methods for a tiny model."""

from pathlib import Path

import pytest

from discernment.prompts import Label, PromptSet, Provenance
from discernment.runs.recipe import parse_recipe
from tiny import make_benign, make_prompts


@pytest.fixture
def recipe(model_folder, tmp_path):
    pairs, test = make_prompts(6), make_prompts(12)[12:]
    sets = {
        "general": make_benign(6),
        "safety": pairs.with_label(Label.TOXIC),
        "augmentation": pairs.with_label(Label.SEEMINGLY_TOXIC),
        "contrast": pairs,
        "test": PromptSet(test, Provenance(name="test")),
        "easy": make_benign(8).filter(lambda p: p.id > "b3", "a high number"),
    }
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in sets}
    for name, prompts in sets.items():
        prompts.to_jsonl(Path(paths[name]))
    return parse_recipe(
        {
            "name": "tiny",
            "model": str(model_folder()),
            "data": {name: paths[name] for name in ("general", "safety", "augmentation", "contrast")},
            "refine": {"layer": 2, "steps": 2, "batch_size": 4, "learning_rate": 1e-3},
            "align": {"batch_size": 4, "learning_rate": 3e-3},
            "methods": ["base", "stl", "stl_aug", "dcr"],
            "evaluate": {
                "max_new_tokens": 4,
                "unscored_limit": 1,  # a tiny model says nothing that can be read
                "batch_size": 8,
                "openings": ["Sorry", "I can't"],
                "benchmarks": [{"set": paths["test"], "name": "pairs"}, {"set": paths["easy"]}],
            },
        },
        "tiny",
    )
