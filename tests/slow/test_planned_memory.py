"""The memory that a plan says, against what stages record, each in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.slow

CASES = {
    "align": (384, 6, 16000, {"batch_size": 8}),
    "refine": (384, 6, 16000, {"layer": 3, "batch_size": 16, "steps": 2, "stopping": "none"}),
    "adapted": (512, 8, 32000, {"batch_size": 4, "lora": {"rank": 8}}),
}
STAGE = """
import json, sys
from pathlib import Path
from discernment.models.loading import load_chat
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts.sources import PromptSource, load_source
from discernment.runs.planning.estimate import work_of
from discernment.runs.resources import resident
from discernment.runs.stages import Quiet, StageRunner
from discernment.training import contrastive_trainer, preference_trainer, supervised_trainer
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.supervised import AlignOptions, align

what, model, out, options = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
start = PolicySpec.of(model)
if "layer" in options:
    prompts = load_source(PromptSource(set="starter/pairs", split="train"))
    work, inputs = refine, {"prompts": prompts, "options": RefineOptions(**options)}
else:
    examples = load_source(PromptSource(set="starter/benign", split="train", limit=16))
    work, inputs = align, {"examples": examples, "options": AlignOptions(**options)}
if what == "plan":
    process, found = resident(), work_of(inputs, start.model, load_chat(start.model))
    print(process + found.of(found.options).memory)
else:
    runner = StageRunner(out, Quiet())
    runner.run("stage", work, {"start": start, **inputs})
    print(next(iter(runner.records.values())).peak_memory_bytes)
"""


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_within_a_quarter_of_what_is_recorded(case, tokenizer, tmp_path):
    hidden, layers, vocabulary, options = CASES[case]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    taken = {}
    for what in ("plan", "run"):
        given = [what, str(tmp_path / "model"), str(tmp_path / "stages"), json.dumps(options)]
        done = subprocess.run(
            [sys.executable, "-c", STAGE, *given], capture_output=True, text=True, check=True
        )
        taken[what] = int(done.stdout.split()[-1])
    assert taken["plan"] == pytest.approx(taken["run"], rel=0.25)
