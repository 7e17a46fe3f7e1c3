"""Tasks worked on side by side, by every engine: the same results, no stage twice, and a killed process costs time alone."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from discernment.errors import DataError
from discernment.files import read_json
from discernment.prompts import PromptSet, Provenance
from discernment.runs import parallel
from discernment.runs.fleet.processes import Processes
from discernment.runs.fleet.ray_cluster import RayCluster
from discernment.runs.fleet.slurm import Slurm
from discernment.runs.left_out import run_left_out
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from discernment.runs.seeds import run_seeds
from noted import Noted
from tiny import make_benign, make_prompts

ENGINES = [Processes(), RayCluster(), Slurm(executor="local", minutes=5)]


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def engine(request, monkeypatch):
    package = request.param.package
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra {request.param.name} is not installed")
    # Where the processes of Ray and submitit find the reporter of these tests.
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]))
    return request.param


@pytest.fixture
def content(model_folder, tmp_path):
    sets = {
        "general": make_benign(4),
        "safety": make_prompts(4),
        "test": PromptSet(make_prompts(7)[8:], Provenance(name="test")),
    }
    for name, prompts in sets.items():
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
    path = {name: str(tmp_path / f"{name}.jsonl") for name in sets}
    return {
        "name": "tiny",
        "model": str(model_folder()),
        "data": {"general": path["general"], "safety": path["safety"], "contrast": path["safety"]},
        "refine": {"layer": 1, "steps": 1, "batch_size": 4},
        "align": {"batch_size": 4, "learning_rate": 3e-3, "epochs": 1},
        "methods": ["base", "stl", {"method": "dcr", "name": "mine"}, {"method": "prompted", "on": "stl"}],
        "evaluate": {
            "max_new_tokens": 2, "unscored_limit": 1, "batch_size": 8, "openings": ["Sorry"],
            "benchmarks": [{"set": path["test"], "name": "pairs"}],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ({"CUDA_VISIBLE_DEVICES": "4, 6,7"}, {"CUDA_VISIBLE_DEVICES": "6"}),
        (
            {"ROCR_VISIBLE_DEVICES": "4,6,7", "HIP_VISIBLE_DEVICES": "0,2,1"},
            {"ROCR_VISIBLE_DEVICES": "4,6,7", "HIP_VISIBLE_DEVICES": "2"},
        ),
        ({"ROCR_VISIBLE_DEVICES": "4,6,7"}, {"ROCR_VISIBLE_DEVICES": "6"}),
    ],
)
def test_a_process_sees_one_accelerator_that_no_other_has(shown, expected, tmp_path, monkeypatch):
    """Trainers take the first that they see, so an index that is set is not enough."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 3)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    for name in parallel.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    for name, devices in shown.items():
        monkeypatch.setenv(name, devices)
    held = [monkeypatch.setattr(parallel, "_held", []) or parallel._held]
    parallel._take_a_device(tmp_path)  # of a first process
    for name in parallel.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    for name, devices in shown.items():
        monkeypatch.setenv(name, devices)
    held.append(monkeypatch.setattr(parallel, "_held", []) or parallel._held)
    parallel._take_a_device(tmp_path)  # of a second
    parallel._take_a_device(tmp_path)  # which keeps it for its next task
    assert {name: os.environ[name] for name in parallel.VISIBLE if name in os.environ} == expected
    assert [len(locks) for locks in held] == [1, 1]
    for locks in held:
        locks[0].release()


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_untrained_methods_side_by_side(content, tmp_path):
    recipe = parse_recipe({**content, "methods": ["base", "prompted"]}, "r")
    alone = run_recipe(recipe, tmp_path / "alone")
    told = []
    reporter = Noted(tmp_path / "log")
    reporter.progress = lambda *said: told.append(said)
    summary = run_recipe(recipe, tmp_path / "both", reporter, jobs=2)
    assert summary.results == alone.results
    assert (summary.stages_run, told) == (2, [("methods done", 1, 2), ("methods done", 2, 2)])
    assert sorted(reporter.begun()) == [
        ("tiny base", "base", "evaluate"),
        ("tiny prompted", "prompted", "evaluate"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_side_by_side_comes_to_the_same(content, tmp_path, engine):
    recipe = parse_recipe(content, "r")
    alone = run_recipe(recipe, tmp_path / "alone")
    notes = Noted(tmp_path / "log")
    summary = run_recipe(recipe, tmp_path / "both", notes, jobs=2, engine=engine)
    assert summary.results == alone.results
    assert read_json(tmp_path / "both/results.json") == read_json(tmp_path / "alone/results.json")
    made = {p.name for p in (tmp_path / "both/stages").iterdir()}
    assert made == {p.name for p in (tmp_path / "alone/stages").iterdir()}
    begun = notes.begun()
    assert len(begun) == len(made) == summary.stages_run == alone.stages_run  # none twice
    assert {task for task, _, _ in begun} == {f"tiny {m}" for m in ("base", "stl", "mine", "prompted")}
    stages = read_json(tmp_path / "both/manifest.json")["methods"]["prompted"]["stages"]
    assert [s.partition("-")[0] for s in stages] == ["align", "evaluate"]
    assert run_recipe(recipe, tmp_path / "both").stages_run == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_process_costs_time_alone(content, tmp_path, caplog, engine):
    recipe = parse_recipe({**content, "methods": content["methods"][:3], "seeds": [1, 2]}, "r")
    alone = run_seeds(recipe, tmp_path / "alone")
    notes = Noted(tmp_path / "log", kill_at="align")
    both = run_seeds(recipe, tmp_path / "both", notes, jobs=2, engine=engine)
    assert (tmp_path / "killed").exists()
    assert "A process was killed; its task, tiny-" in caplog.text
    assert both.results == alone.results
    for seed in (1, 2):
        assert both.runs[seed].results == alone.runs[seed].results
        assert read_json(tmp_path / f"both/seed-{seed}/results.json") == read_json(
            tmp_path / f"alone/seed-{seed}/results.json"
        )
    made, expected = ({p.name for p in (tmp_path / run / "stages").iterdir()} for run in ("both", "alone"))
    assert made == expected  # the base model's evaluation serves both seeds
    assert len(notes.begun()) - len(made) == 1  # what was killed, and nothing else


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_without_a_group_side_by_side(content, tmp_path):
    pairs, more = content["data"]["safety"], str(tmp_path / "more.jsonl")
    make_prompts(4).to_jsonl(Path(more))
    data = {**content["data"], "safety": [pairs, more], "contrast": [pairs, more]}
    benchmarks = [{"set": pairs, "name": "pairs"}, {"set": more, "name": "more"}]
    recipe = parse_recipe(
        {
            **content,
            "data": data,
            "methods": ["base", "stl"],
            "leave_out": {"first": [pairs], "second": [more]},
            "evaluate": {**content["evaluate"], "benchmarks": benchmarks},
        },
        "r",
    )
    alone = run_left_out(recipe, tmp_path / "alone")
    assert len(alone.runs) == 2
    notes = Noted(tmp_path / "log")
    both = run_left_out(recipe, tmp_path / "both", notes, jobs=2)
    assert both.results == alone.results
    assert len(notes.begun()) == len(list((tmp_path / "both/stages").iterdir())) > 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_task_raises_is_told(content, tmp_path, engine):
    content["evaluate"]["unscored_limit"] = 0
    with pytest.raises(DataError, match="unscored"):
        run_recipe(parse_recipe(content, "r"), tmp_path / "run", jobs=2, engine=engine)
    assert not Path(tmp_path / "run/results.json").exists()
