"""Options that training stages share: of the optimizer, of adapters, of the contrastive loss."""

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator

from discernment.errors import TrainingError
from discernment.frozen import FiniteFrozen
from discernment.ranks import check_together, launched
from discernment.training.trackers import tracking_arguments

LARGEST_SEED = 2**32 - 1
"""NumPy's, which transformers seeds, too."""


class LoraOptions(FiniteFrozen):
    """Low-rank adapters on every linear layer that the stage trains."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    keep: Literal["adapter", "merged", "both"] = Field(
        "both", description="What the stage leaves: the adapter, the model that it is merged into, or both."
    )


class OptimizerOptions(FiniteFrozen):
    """Options of the optimizer and its schedule."""

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1, description="Prompts a step, over all devices.")
    gradient_accumulation: int = Field(1, ge=1)
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises."
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    optim: Literal[
        "adamw_torch_fused", "adafactor", "sgd", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"
    ] = Field(
        "adamw_torch_fused",
        description="The optimizer, by its name in transformers.",
        exclude_if=lambda optim: (
            optim == "adamw_torch_fused"
        ),  # so stages keep the names that they had before
    )
    lora: LoraOptions | None = Field(None, description="Train adapters instead of all parameters.")
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="Steps between checkpoints, from which an interrupted stage goes on; a stage that stops by a "
        "validation number has one at each look anyway.",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED)

    @field_validator("optim")
    @classmethod
    def _is_installed(cls, optim: str) -> str:
        if ("bit" in optim) and find_spec("bitsandbytes") is None:
            raise ValueError(f"`optim: {optim}` needs the package bitsandbytes; install it or name another")
        return optim

    @property
    def rows(self) -> int:
        """Rows of a batch, over all devices."""
        return self.batch_size

    def share(self) -> int:
        """Rows of a batch for each device.

        Raises:
            TrainingError: If it cannot be shared out in equal parts.
        """
        if self.rows % launched():
            raise TrainingError(
                f"A batch of {self.rows} cannot be shared out among {launched()} devices in equal parts; make it a multiple of "
                f"{launched()}."
            )
        return self.rows // launched()


class LossOptions(FiniteFrozen):
    """Which contrastive loss, and on what view of the hidden states."""

    name: Literal["circle", "supcon", "ntxent", "triplet"] = Field(
        "supcon", description="The paper uses Circle loss, which weighs negatives by their difficulty."
    )
    margin: float = Field(0.25, ge=0, description="Circle's relaxation m, or the triplet margin.")
    gamma: float = Field(64.0, gt=0, description="Circle's scale.")
    temperature: float = Field(0.2, gt=0, description="Temperature of SupCon and NT-Xent.")
    reduction: Literal["per_anchor", "global"] = Field(
        "per_anchor",
        description="Circle only: one term an anchor, averaged, or one term over all pairs of the batch.",
    )
    pooling: Literal["last", "mean"] = Field(
        "last", description="The last token's state, or the mean over tokens."
    )
    centre: bool = Field(
        True,
        description="Subtract the batch mean: a few huge dimensions of the residual stream dominate plain cosine.",
    )
    memory: int = Field(
        0,
        ge=0,
        description="Also contrast each prompt with the last so many states, those of the batch among them.",
        exclude_if=lambda memory: memory == 0,  # so stages keep the names that they had before there was this
    )
    worst_sources: float = Field(
        0.0,
        ge=0,
        description="How fast sources gain weight by a high loss; 0 weighs every prompt alike.",
        exclude_if=lambda step: step == 0,
    )

    @model_validator(mode="after")
    def _have_a_term_a_prompt(self) -> Self:
        given = [name for name in ("memory", "worst_sources") if getattr(self, name)]
        per_prompt = self.name == "supcon" or (self.name, self.reduction) == ("circle", "per_anchor")
        if given and not per_prompt:
            raise ValueError(
                f"`{given[0]}` needs a loss with one term a prompt: `supcon`, or `circle` with `reduction: per_anchor`"
            )
        if len(given) > 1:
            raise ValueError("`worst_sources` and `memory` do not go together; leave one out")
        return self


def steps_of(options: OptimizerOptions, rows: int, epochs: float) -> int:
    """Optimizer steps that the `Trainer` takes: each epoch's last batch, and its last step, may be smaller."""
    batches = math.ceil(rows / options.batch_size)
    return max(1, math.ceil(epochs * math.ceil(batches / options.gradient_accumulation)))


def trainer_arguments(
    options: OptimizerOptions, out: Path, steps: int, device: torch.device, *, mixed: bool
) -> dict[str, Any]:
    """Keyword arguments for `TrainingArguments` that both stages share.

    Args:
        options: The optimizer's options.
        out: The stage's directory; checkpoints go to `out/checkpoints`.
        steps: Number of optimizer steps, for the warm-up.
        device: Where to train.
        mixed: Compute in bfloat16 while the weights stay in float32.

    Raises:
        TrainingError: If the devices cannot have equal parts of a batch, or it is to be another GPU than the first.
        RunError: If the stage is not one that several processes do together, and there are several.
    """
    check_together()
    if device.type == "cuda" and device.index:
        raise TrainingError(
            f"Training takes the first GPU that it sees; set CUDA_VISIBLE_DEVICES={device.index} and `device: cuda` instead "
            f"of `device: {device}`."
        )
    # In parts, the best checkpoint would not be taken back.
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    rows = options.share()
    return {
        "output_dir": str(out / "checkpoints"),
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "warmup_steps": round(options.warmup * steps),
        "lr_scheduler_type": options.schedule,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_gradient_norm,
        "gradient_checkpointing": options.gradient_checkpointing,
        "optim": options.optim,
        "seed": options.seed,
        "data_seed": options.seed,
        "save_strategy": "steps" if options.checkpoint_every else "no",
        "save_steps": options.checkpoint_every or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        # The filter would replace a NaN loss by the recent mean; a diverged stage must be seen.
        "logging_nan_inf_filter": False,
        **tracking_arguments(),
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "bf16": mixed,
        "use_cpu": device.type == "cpu",
    }
