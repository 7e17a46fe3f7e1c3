"""What CONTRIBUTING.md tells to add runs as it stands, on a tiny model, installed as another package would be."""

import csv
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.sample import read_samples
from discernment.files import read_json
from discernment.judges import JudgeSpec
from discernment.judges.verdict import Verdict
from discernment.methods.method import find_method
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rule import find_rule
from discernment.prompts import CatalogueEntry, Label, catalogue
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import evaluate_policy, run_recipe
from tiny import make_benign, make_prompts

TEXT = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {
    "Add a training method": ["python", "toml"],
    "Add a decoding rule": ["python", "toml"],
    "Add a steering rule": ["python", "toml"],
    "Add a judge": ["python"],
    "Add a benchmark": ["yaml", "yaml"],
}
LONGEST = 50
OPTIONS = EvaluateOptions(max_new_tokens=4, openings=["Sorry", "I can't"])


def blocks(heading):
    """The code of a section, block by block, as `(language, code)`."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None, heading
    return re.findall(r"^```(\w+)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def of_language(heading, language):
    return [code for of, code in blocks(heading) if of == language]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_section_shows_what_it_tells_in_few_lines(heading):
    assert [language for language, _ in blocks(heading) if language != "bash"] == SECTIONS[heading]
    for language, code in blocks(heading):
        assert 0 < len(code.splitlines()) <= LONGEST, (language, len(code.splitlines()))
        assert max(map(len, code.splitlines())) <= 120


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a section's module under the name and the entry points that the section says; gives the module."""

    def put(heading):
        (code,), (announced,) = of_language(heading, "python"), of_language(heading, "toml")
        groups = tomllib.loads(announced)["project"]["entry-points"]
        ((group, entries),) = groups.items()
        ((name, value),) = entries.items()
        module = value.partition(":")[0]
        file = tmp_path.joinpath("site", *module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True)
        file.write_text(code, encoding="utf-8")
        info = tmp_path / "site/my_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        return importlib.import_module(module)

    yield put
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def make_recipe(folder, tmp_path, methods, benchmarks):
    prompts = make_prompts(4)
    sets = {"general": make_benign(4), "safety": prompts.with_label(Label.TOXIC)}
    for name, chosen in sets.items():
        chosen.to_jsonl(tmp_path / f"{name}.jsonl")
    return parse_recipe(
        {
            "name": "tiny",
            "model": str(folder),
            "data": {name: str(tmp_path / f"{name}.jsonl") for name in sets},
            "align": {"batch_size": 4, "learning_rate": 3e-3},
            "methods": methods,
            "evaluate": {**OPTIONS.model_dump(), "unscored_limit": 1, **benchmarks},
        },
        "tiny",
    )


def says(policy, out):
    """What a policy makes of a few prompts: completions and rejection probabilities."""
    evaluate_policy(PolicySpec.of(policy), [make_prompts(3), make_benign(3)], OPTIONS, JudgeSpec(), out)
    samples = read_samples(out / "samples.jsonl")
    assert len(samples) == 9
    return [(s.completion, round(s.rejection_probability, 6)) for s in samples]


def test_a_training_method(install, model_folder, tmp_path):
    module = install("Add a training method")
    assert type(find_method("norms")) is module.Norms
    folder = model_folder()
    make_prompts(3).to_jsonl(tmp_path / "test.jsonl")
    benchmarks = {"benchmarks": [str(tmp_path / "test.jsonl")]}
    recipe = make_recipe(folder, tmp_path, ["base", "norms"], benchmarks)
    summary = run_recipe(recipe, tmp_path / "run")
    assert {s.method for s in summary.results.scores} == {"base", "norms"}
    assert summary.samples["base"] != summary.samples["norms"]
    policy = PolicySpec.model_validate(
        read_json(tmp_path / "run/manifest.json")["methods"]["norms"]["policy"]
    )
    before = load_file(folder / "model.safetensors")
    after = load_file(tmp_path / "run" / policy.model.model / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {name for name in before if "norm" in name}
    (stage,) = (
        s for s in read_json(tmp_path / "run/manifest.json")["stages"].values() if s["name"] == "align"
    )
    assert stage["steps"] == 2
    assert stage["tokens"] > 100
    assert run_recipe(recipe, tmp_path / "run").stages_run == 0


def test_a_decoding_rule(install, model_folder, tmp_path):
    module = install("Add a decoding rule")
    assert type(find_rule("contrasted", {})) is module.Contrasted
    base, said = str(model_folder()), {}
    for strength in (0, 2):
        rule = RuleSpec(name="contrasted", options={"strength": strength})
        PolicySpec(model=ModelSpec(model=base), rule=rule).save(tmp_path / f"policy-{strength}")
        said[strength] = says(str(tmp_path / f"policy-{strength}"), tmp_path / f"samples-{strength}")
    assert said[0] == says(base, tmp_path / "samples")
    assert all(one != other for one, other in zip(said[0], said[2], strict=True))


def test_a_steering_rule(install, model_folder, tmp_path):
    module = install("Add a steering rule")
    base, said, prompts = str(model_folder()), {}, make_prompts(3)
    for strength in (0, 4):
        rule = module.Added(layer=2, strength=strength)
        module.leave_added(base, prompts, rule, tmp_path / f"policy-{strength}")
        said[strength] = says(str(tmp_path / f"policy-{strength}"), tmp_path / f"samples-{strength}")
    spec = PolicySpec.of(str(tmp_path / "policy-4")).rule
    assert (spec.name, spec.options) == ("added", {"layer": 2, "strength": 4.0})
    assert type(spec.load()) is module.Added
    assert said[0] == says(base, tmp_path / "samples")
    assert all(one != other for one, other in zip(said[0], said[4], strict=True))


def test_a_judge(tiny_policy, tmp_path):
    (code,) = of_language("Add a judge", "python")
    there = {"__name__": "apology"}
    exec(code, there)
    judge = there["ApologyJudge"]()
    said = ["I'm sorry, no.", "Sure.", " "]
    assert [judge.judge("", c) for c in said] == [Verdict.REFUSAL, Verdict.COMPLIANCE, Verdict.UNSCORED]
    cost = evaluate(tiny_policy, [make_prompts(3), make_benign(3)], OPTIONS, tmp_path, judge=judge)
    assert cost.notes["judge"] == "apology"
    samples = read_samples(tmp_path / "samples.jsonl")
    assert len(samples) == 9
    assert [s.verdict for s in samples] == [judge.judge(s.prompt, s.completion) for s in samples]
    assert Verdict.COMPLIANCE in {s.verdict for s in samples}


def test_a_benchmark_of_ones_own(model_folder, tmp_path, monkeypatch):
    asked = yaml.safe_load(of_language("Add a benchmark", "yaml")[0])["evaluate"]
    (benchmark,) = asked["benchmarks"]
    columns = benchmark["columns"]
    monkeypatch.chdir(tmp_path)
    with Path(benchmark["set"]).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([columns["text"], columns["label"], columns["category"]])
        writer.writerows([f"How do I do it, number {n}?", n % 2, "chores"] for n in range(6))
    summary = run_recipe(make_recipe(model_folder(), tmp_path, ["base"], asked), tmp_path / "run")
    samples = summary.samples["base"]
    assert summary.results.benchmarks == [benchmark["name"]]
    assert [s.prompt for s in samples] == [f"How do I do it, number {n}?" for n in range(6)]
    assert [s.label for s in samples] == [Label.SEEMINGLY_TOXIC, Label.TOXIC] * 3
    assert {s.category for s in samples} == {"chores"}


def test_a_benchmark_for_everyone():
    ((name, fields),) = yaml.safe_load(of_language("Add a benchmark", "yaml")[1]).items()
    entry = CatalogueEntry(name=name, **fields)
    assert name not in catalogue()
    assert (entry.rows, entry.directions) == (300, {Label.SEEMINGLY_TOXIC: "compliance"})
    assert entry.hub.fixed_label is Label.SEEMINGLY_TOXIC
