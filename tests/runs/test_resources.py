"""What a stage is said to use, and what it gives back."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
from pathlib import Path
import torch
from discernment.runs.resources import Meter

def resident():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

held = [torch.ones(1 << 14) for _ in range(4800)]  # 300 MiB in pieces that malloc takes from its heap
pinned = torch.ones(1 << 14)  # on top of them, so that freeing them gives nothing back
del held
kept = resident()
with Meter() as meter:
    left = resident()
    torch.ones(1 << 25).sum()  # 128 MiB
print(kept, left, meter.peak_memory_bytes >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps and trims")
def test_what_one_stage_has_freed_does_not_count_for_the_next():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    kept, left, peak = map(int, done.stdout.split())
    assert left < kept - 250
    assert left + 100 < peak < kept
