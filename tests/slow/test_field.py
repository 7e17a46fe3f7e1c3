"""The recipe of all methods in a reduced form: a tiny random model, one step, two prompts of every set."""

import pytest
import yaml

from discernment.evaluation.sample import read_samples
from discernment.files import write_json_lines
from discernment.prompts import Label, load_starter
from discernment.prompts.catalogue import catalogue
from discernment.reporting.pages.run import write_report
from discernment.runs.built_in import find_recipe
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from page import Page

pytestmark = pytest.mark.slow

FIELD = find_recipe("field")
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


@pytest.mark.timeout(900)
def test_every_method_of_the_field_runs_and_stands_in_the_table(model_folder, tmp_path, monkeypatch):
    stand_ins(tmp_path)
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    content = yaml.safe_load(FIELD.read_text())
    model = model_folder(max_position_embeddings=2048)
    recipe = parse_recipe(reduced(content, str(model)), "field")
    labels = [method.label for method in recipe.methods]
    summary = run_recipe(recipe, tmp_path / "run")
    assert summary.results.methods == labels
    assert len(labels) >= 20
    evaluated = list((tmp_path / "run/stages").glob("evaluate-*/samples.jsonl"))
    assert len(evaluated) >= 15  # some strengths make no difference to a random model
    assert {len(read_samples(path)) for path in evaluated} == {2 * len(recipe.evaluate.benchmarks)}
    strict = {r.method for r in summary.results.safety_levels if r.measure == "strict_compliance"}
    assert strict == set(labels)
    page = Page(write_report(tmp_path / "run").read_text())
    assert page.source.count('<tr role="row" style=') == len(labels)
    assert "Perplexity / base" in page.text("th")
    assert "frontier" in page.source
