"""A method of a run as a folder for the hub: its card says what results.json says, and others can load it."""

from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from discernment.evaluation.results import Results
from discernment.files import read_json
from discernment.policies.policy import Policy
from discernment.reporting.model_card import model_card
from discernment.reporting.run_files import read_run
from discernment.runs.manifest import policy_of
from discernment.runs.recipe import read_recipe
from discernment.runs.run import run_recipe

RECIPE = {
    "name": "try",
    "model": "tiny",
    "data": {"general": "benign.jsonl", "safety": {"set": "pairs.jsonl"}},
    "align": {"epochs": 1, "batch_size": 4},
    "methods": ["base", "stl", {"method": "prompted", "on": "stl"}],
    "evaluate": {
        "max_new_tokens": 3, "unscored_limit": 1, "openings": ["Sorry"],
        "benchmarks": ["pairs.jsonl", "benign.jsonl"],
    },
}  # fmt: skip


@pytest.fixture
def run(files):
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    run_recipe(read_recipe("recipe.yaml"), Path("run"))
    return Path("run")


def test_the_folder_is_a_model_with_a_card(run, discern):
    code, shown, error = discern("publish", "run/stl", "me/tiny-stl", "--dry-run")
    assert (code, error) == (0, "")
    folder = run / "publish/stl"
    assert f"Folder: {folder}." in " ".join(shown.split())
    ids = torch.tensor([[5, 6, 7]])
    published = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    torch.testing.assert_close(published, Policy.load(policy_of(run, "stl")).model(ids).logits)

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert "over-refusal" in card.data.tags
    text = card.text
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0] == ["", "`base`", "`stl`"]
    results = Results.model_validate(read_json(run / "results.json"))
    scored = [s for s in results.scores if s.method == "stl" and s.value is not None]
    cells = [row[2] for row in rows if len(row) == 3]
    assert scored
    for score in scored:
        assert any(cell.startswith(f"{100 * score.value:.1f} (") for cell in cells)
    ranked = [r for r in results.rankings if r.method == "stl"]
    assert ranked
    for ranking in ranked:
        assert any(cell.startswith(f"{ranking.value:.3f} (") for cell in cells)
    assert {"benign.jsonl", "pairs.jsonl"} <= {row[0] for row in rows}
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == yaml.safe_load(
        (run / "recipe.yaml").read_text()
    )
    # The same command replaces what it left, and nothing else.
    assert discern("publish", "run/stl", "me/tiny-stl", "--dry-run")[0] == 0
    (run / "publish/stl/.git").mkdir()
    Path("mine").mkdir()
    Path("mine/README.md").write_text("# My project")
    Path("a file").touch()
    for folder in (run / "publish/stl", Path("mine"), Path("a file")):
        code, _, error = discern("publish", "run/stl", "me/tiny-stl", "--dry-run", "--out", folder)
        assert (code, f"{folder} holds something else" in error) == (2, True)
    assert Path("mine/README.md").read_text() == "# My project"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("run/base", "is a model that exists already; publish a method that trains one."),
        ("run/prompted", "acts by the rule 'prompted' while it replies, which no other program would apply"),
        ("run/none", "has no method 'none'; it has base, stl, prompted."),
        ("stl", "'stl' names no run; write RUN/METHOD"),
        ("run/stl", "The hub did not take me/tiny"),  # tests are offline
    ],
)
def test_what_cannot_be_published_is_one_sentence(run, discern, method, said):
    code, _, error = discern("publish", method, "me/tiny")
    assert code == 2
    assert said in error
    assert error.count("\n") == 1


def test_data_that_is_not_for_commercial_use_is_said(run):
    found = read_run(run)
    recipe = yaml.safe_load(found.recipe)
    plain = model_card(found, "stl", policy_of(run, "stl"))
    assert "commercial" not in plain
    recipe["data"]["safety"] = [{"set": "stl_safety"}, "starter/toxic"]
    object.__setattr__(found, "recipe", yaml.safe_dump(recipe))
    card = model_card(found, "stl", policy_of(run, "stl"))
    assert "| stl_safety | CC BY-NC 4.0 |" in card
    assert "| starter/toxic | Apache-2.0 |" in card
    assert "**Not for commercial use:** stl_safety" in card
    assert ModelCard(card).data.license == "other"


def test_an_adapter_names_its_base_as_others_do(files, discern):
    lora = {"lora": {"rank": 2, "keep": "adapter"}}
    recipe = {
        **RECIPE,
        "data": {**RECIPE["data"], "contrast": "pairs.jsonl"},
        "align": {**RECIPE["align"], **lora},
        "refine": {"layer": 1, "steps": 1, "batch_size": 4},
        "methods": ["stl", "dcr"],
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(read_recipe("recipe.yaml"), Path("run"))
    code, _, error = discern("publish", "run/stl", "me/tiny", "--dry-run")
    assert (code, error) == (0, "")
    folder = Path("run/publish/stl")
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "tiny"
    assert (folder / "adapter_model.safetensors").is_file()
    assert "library_name: peft" in (folder / "README.md").read_text()
    # Stage 1 of `dcr` trained all weights of the layers that its adapter stands on.
    code, _, error = discern("publish", "run/dcr", "me/tiny", "--dry-run")
    assert (code, "stands on weights of the run" in error) == (2, True)
