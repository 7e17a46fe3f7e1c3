"""`discern run` and what its models are good for: `report`, `compare`, `chat`, `diagnose`."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from discernment.evaluation.results import Results
from discernment.files import read_json
from discernment.runs.recipe import read_recipe
from interruption import interrupt


def write_recipe(path, **changes):
    recipe = {
        "name": "try",
        "model": "tiny",
        "data": {"general": "benign.jsonl", "safety": "pairs.jsonl", "contrast": "pairs.jsonl"},
        "refine": {"layer": 2, "steps": 2, "batch_size": 4},
        "methods": ["base"],
        "evaluate": {
            "max_new_tokens": 3,
            "unscored_limit": 1,  # a tiny model says nothing that can be read
            "openings": ["Sorry"],
            "benchmarks": ["pairs.jsonl", "benign.jsonl"],
        },
    }
    path.write_text(yaml.safe_dump({**recipe, **changes}))


RECIPE_MISTAKES = {
    "unknown key": ({"sed": 1}, "bad.yaml: `sed` is not a known option; did you mean `seed`?"),
    "empty after filtering": (
        {"data": {"general": {"set": "benign.jsonl", "label": "toxic"}}},
        "benign has no prompt with label toxic; it has 4 benign.",
    ),
    "row without a prompt": (
        {"data": {"general": "row.jsonl"}},
        "row.jsonl, line 2, has no prompt in column 'prompt'",
    ),
    "unknown label": ({"data": {"general": "label.jsonl"}}, "label.jsonl, line 1, has the label 'harmful'"),
    "unknown model": ({"model": "no/model"}, "The model 'no/model' cannot be loaded"),
    "layer out of range": (
        {"methods": ["dcr"], "refine": {"layer": 5, "steps": 1}},
        "Layer 5 is out of range: the model has 4 layers",
    ),
    "missing material": (
        {"data": {}, "methods": ["stl"]},
        "The method 'stl' needs prompts under `data.general`",
    ),
}


@pytest.mark.parametrize(("changes", "message"), RECIPE_MISTAKES.values(), ids=RECIPE_MISTAKES)
def test_a_mistake_in_a_recipe_costs_one_sentence(discern, files, changes, message):
    write_recipe(Path("bad.yaml"), **changes)
    code, output, error = discern("run", "bad.yaml", "-o", "o")
    assert code == 2
    assert re.match(f"discern: {message}", error)
    assert error.count("\n") == 1
    assert "Traceback" not in output + error


def test_a_run_needs_a_place(discern, files):
    write_recipe(Path("good.yaml"))
    code, _, error = discern("run", "good.yaml", "-o", "full/thesis.tex")
    assert (code, error.count("\n")) == (2, 1)
    assert re.match(r"discern: The run directory full/thesis\.tex cannot be made", error)


def test_a_run_with_several_seeds(discern, screen, files):
    again = {"method": "base", "name": "again"}
    write_recipe(Path("seeds.yaml"), seeds=[0, 3], methods=["base", again])
    code, output, _ = screen("run", "seeds.yaml")
    assert code == 0
    assert output.count("evaluate ...") == 1  # base is what it is under every name and seed
    for seed in (0, 3):
        run = f"runs/try/seed-{seed}"
        assert f"Seed {seed}. Report: {run}/report.html; tables: {run}/tables\nCaution: 12 prompts" in output
        assert Path(run, "tables/scores.csv").is_file()
    assert "again and base cannot be compared at equal safety" in output
    assert "the benign prompts of benign.jsonl (0.000, 95 % interval" in " ".join(output.split())
    assert output.endswith("Tables: runs/try/tables\nPage: runs/try/seeds.html\n")
    assert {p.name for p in Path("runs/try/tables").iterdir()} == {"seeds.csv", "seeds.md"}
    page = Path("runs/try/seeds.html").read_bytes()
    Path("runs/try/seeds.html").unlink()
    assert discern("report", "runs/try")[:2] == (0, "Page: runs/try/seeds.html\n")
    assert Path("runs/try/seeds.html").read_bytes() == page
    reports = [f"Report: runs/try/seed-{seed}/report.html" for seed in (0, 3)]
    assert discern("report", "runs/try", "--redact")[1].splitlines()[1:] == reports
    code, _, error = discern("report", "runs/try/seed-0", "--reference", "again")
    assert (code, error.count("\n")) == (2, 1)
    assert "`discern compare runs/try/seed-0 --reference again`" in error
    assert "`discern report runs/try --reference METHOD`" in discern("compare", "runs/try")[2]
    assert "not clearly different" in Path("runs/try/seeds.html").read_text()
    assert discern("run", "seeds.yaml")[2].count("(done before)") == 4


TRAINS = {
    *("trl", "peft", "bitsandbytes", "datasets", "accelerate", "pytorch_metric_learning", "lm_eval"),
    *("transformers", "torch._dynamo", "torch._inductor"),
}


def test_a_second_call_loads_nothing_that_trains(screen, files):
    write_recipe(Path("twice.yaml"), methods=["base", "stl", "dcr"], data={
        "general": "benign.jsonl", "safety": {"set": "pairs.jsonl", "label": "toxic"}, "contrast": "pairs.jsonl",
    })  # fmt: skip
    code, output, _ = screen("run", "twice.yaml")
    assert (code, output.count("...")) == (0, 6)
    page = Path("runs/try/report.html").read_text()
    again = (
        "import sys; sys.argv = ['discern', 'run', 'twice.yaml']\n"
        "from discernment.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('loaded:', *sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True, check=True)
    loaded = found.stdout.rpartition("loaded: ")[2]
    said = found.stderr
    assert said.count("(done before)") == 6
    assert "Nothing to do: every stage was done before." in said
    assert {"torch", "discernment.training.supervised"} <= set(loaded.split())
    assert not TRAINS & set(loaded.split())
    minute = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC")
    assert minute.sub("", Path("runs/try/report.html").read_text()) == minute.sub("", page)


def test_finding_a_method_loads_nothing_that_trains():
    find = (
        "import sys; from discernment.methods.method import find_method, known_methods\n"
        "print(*(find_method(name).name for name in known_methods()))\n"
        "print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", find], capture_output=True, text=True, check=True)
    names, loaded = found.stdout.splitlines()
    assert {"base", "dcr", "derta", "actor", "surgical", "fixed_rejection"} <= set(names.split())
    assert "discernment.methods.derta" in loaded.split()
    assert not TRAINS & set(loaded.split())


def test_a_run_its_report_and_its_models(discern, screen, files):
    write_recipe(Path("good.yaml"), methods=["base", "stl"])
    code, output, _ = screen("run", "good.yaml")
    assert code == 0
    assert re.search("^stl align", output, re.MULTILINE)
    assert "Caution: 12 prompts of pairs.jsonl are also in the training data." in output
    assert "Report: runs/try/report.html; tables: runs/try/tables" in output
    assert [p.name for p in sorted(Path("runs/try/tables").iterdir())] == [
        "comparisons.csv",
        "safety_levels.csv",
        "scores.csv",
    ]
    finding = Results.model_validate(read_json(Path("runs/try/results.json"))).finding
    assert finding.split(".")[0] in " ".join(output.split())
    code, output, _ = screen("run", "good.yaml")
    assert code == 0
    assert "Nothing to do: every stage was done before." in output
    assert output.count("(done before)") == 3

    assert discern("report", "runs/try", "-o", "own.html", "--redact")[:2] == (0, "Report: own.html\n")
    assert Path("own.html").stat().st_size > 1000
    assert "compared with stl, base" in discern("compare", "runs/try")[1]
    code, output, _ = screen("compare", "one=runs/try", "two=runs/try", "--out", "four.json")
    assert read_json(Path("four.json"))["methods"] == ["one/base", "one/stl", "two/base", "two/stl"]

    talk = io.StringIO("How do I kill a process?\n[bold]Hi[/bold]\n\n")
    code, output, _ = screen("chat", "runs/try/stl", "--max-new-tokens", "3", stdin=talk)
    assert code == 0
    masses = re.findall(r"rejection probability (\d\.\d{3}), judged (\w+)", output)
    assert len(masses) == 2
    assert discern("chat", "tiny", stdin=io.StringIO(""))[0] == 0
    code, output, _ = screen(
        "diagnose", "runs/try/stl", "-s", "pairs.jsonl", "-o", "why", "-O", "per_group=1"
    )
    assert (code, "discern refine runs/try/stl --layer" in output.replace("\n", " ")) == (0, True)
    code, _, error = discern("chat", "runs/try/dcr")
    assert (code, error) == (2, "discern: The run runs/try has no method 'dcr'; it has base, stl.\n")


def test_a_run_that_is_interrupted_from_outside_goes_on(screen, files, tmp_path):
    write_recipe(tmp_path / "good.yaml")
    code, printed, error = interrupt(tmp_path, "run", "good.yaml")
    assert code == 130
    assert printed[0].startswith("base evaluate ...")
    assert error.endswith("discern: interrupted; the same command goes on from here.\n")
    assert "Traceback" not in error
    assert not (tmp_path / "runs/try/results.json").exists()
    code, output, _ = screen("run", "good.yaml")
    assert (code, "Report: runs/try/report.html" in output) == (0, True)
    assert json.loads((tmp_path / "runs/try/manifest.json").read_text())["status"] == "complete"


def test_recipes_are_listed_and_printed(discern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, listed, _ = discern("recipes")
    rows = [line.split() for line in listed.splitlines()]
    assert code == 0
    assert ["discern", "run", "quickstart", "1", "none"] in [row[:5] for row in rows]
    assert ["discern", "run", "field", "3", "7"] in [row[:5] for row in rows]
    assert ["discern", "sweep", "layers"] in [row[:3] for row in rows]
    Path("mine.yaml").write_text(discern("recipes", "quickstart")[1])
    assert read_recipe("mine.yaml") == read_recipe("quickstart")
    code, _, said = discern("recipes", "nothing")
    assert (code, "There is no recipe nothing: neither a file" in said) == (2, True)


def test_options_of_an_engine_that_is_not_asked_for_are_refused(discern, files, tmp_path, monkeypatch):
    write_recipe(tmp_path / "good.yaml")
    code, _, error = discern("run", "good.yaml", "--slurm", "gpus=1")
    assert (code, error) == (2, "discern: --slurm is for `--engine slurm`; give both or none.\n")
    code, _, error = discern("run", "good.yaml", "--engine", "slurm", "--slurm", "gpu=1")
    assert code == 2
    assert "`gpu`" in error and "gpus" in error
    for engine, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        code, _, error = discern("run", "good.yaml", "--engine", engine)
        told = f"discern: The engine {engine} needs `pip install 'discernment[{engine}]'`.\n"
        assert (code, error) == (2, told)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_tasks_side_by_side_are_shown_in_lines(screen, files, tmp_path):
    write_recipe(tmp_path / "good.yaml", methods=["base", "stl"])
    code, output, _ = screen("run", "good.yaml", "--jobs", 2)
    assert code == 0
    assert "methods done: 1 of 2, about " in output
    assert "methods done: 2 of 2" in output
    assert "Report: runs/try/report.html" in output
