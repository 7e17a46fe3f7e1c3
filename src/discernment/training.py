"""What both training stages share: options of the optimizer, history, and checkpoints that can be trusted."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from discernment.errors import DiscernmentError, TrainingError
from discernment.files import append_json_lines, read_json, read_json_lines, write_json_lines

__all__ = [
    "EpochSampler",
    "HistoryCallback",
    "LoraOptions",
    "OptimizerOptions",
    "StageCost",
    "StopWithoutImprovement",
    "latest_checkpoint",
    "show_progress",
    "trainer_arguments",
]

logger = logging.getLogger(__name__)


class LoraOptions(BaseModel):
    """Low-rank adapters on every linear layer that the stage trains, merged when it ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class OptimizerOptions(BaseModel):
    """Options of the optimizer and its schedule (AdamW)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1, description="Prompts a step on each device.")
    gradient_accumulation: int = Field(1, ge=1)
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises."
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    lora: LoraOptions | None = Field(None, description="Train adapters instead of all parameters.")
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        description="Steps between checkpoints, from which an interrupted stage goes on; a stage that stops by a "
        "validation number has one at each look anyway.",
    )
    seed: int = 0


class StageCost(BaseModel):
    """What a training stage did and used.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens seen, padding left out.
        notes: Facts for the manifest, e.g. the step of the best checkpoint.
    """

    steps: int
    tokens: int
    notes: dict[str, Any] = Field(default_factory=dict)


class EpochSampler(Sampler[int]):
    """Row numbers in an order that depends on the seed and the epoch alone, so that a resumed stage sees the same.

    Args:
        order: Gives the row numbers of one epoch from a seeded generator.
        length: Number of rows an epoch.
        seed: The stage's seed.
    """

    def __init__(self, order: Callable[[torch.Generator], Sequence[int]], length: int, seed: int) -> None:
        self.order = order
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # Spread seeds apart, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        return iter(self.order(generator))

    def __len__(self) -> int:
        return self.length


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
    """
    return {
        "output_dir": str(out / "checkpoints"),
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "warmup_steps": round(options.warmup * steps),
        "lr_scheduler_type": options.schedule,
        "weight_decay": options.weight_decay,
        "max_grad_norm": options.max_gradient_norm,
        "gradient_checkpointing": options.gradient_checkpointing,
        "optim": "adamw_torch_fused",
        "seed": options.seed,
        "data_seed": options.seed,
        "save_strategy": "steps" if options.checkpoint_every else "no",
        "save_steps": options.checkpoint_every or 500,
        "save_total_limit": 2,
        "logging_steps": 1,
        # The filter would replace a NaN loss by the recent mean; a diverged stage must be seen.
        "logging_nan_inf_filter": False,
        "report_to": os.environ.get("DISCERNMENT_REPORT_TO", "none"),
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "bf16": mixed,
        "use_cpu": device.type == "cpu",
    }


class HistoryCallback(TrainerCallback):
    """Writes every logged number to a JSON-lines file, and stops the stage when the loss is not finite.

    Args:
        path: The file. Rows that lie after the step that the stage resumes from are dropped.
        rename: What the trainer's names are called in the file; other names are left out.
    """

    def __init__(self, path: Path, rename: dict[str, str]) -> None:
        self.path = path
        self.rename = rename

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an interrupted attempt wrote beyond its last checkpoint."""
        known = [r for _, r in read_json_lines(self.path, allow_torn_end=True)] if self.path.exists() else []
        write_json_lines(self.path, [row for row in known if row["step"] <= state.global_step])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write the numbers of one step."""
        found = {self.rename[name]: value for name, value in (logs or {}).items() if name in self.rename}
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"The {bad[0]} is {found[bad[0]]} at step {state.global_step}; lower the learning rate or look for "
                "broken rows in the training data."
            )
        if found:
            append_json_lines(self.path, [{"step": state.global_step, **found}])


class QuietProgress(ProgressCallback):
    """The trainer's progress bar, with the loss beside it instead of a printed line a step."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss."""
        bar: Any = self.training_bar
        if bar is not None and "loss" in (logs or {}):
            bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


class StopWithoutImprovement(TrainerCallback):
    """Stops when a validation number has not improved for a while.

    It is decided from the trainer's log alone, so that a resumed stage stops where an uninterrupted one would.

    Args:
        metric: The number's name in the log.
        greater_is_better: Which way is up.
        patience: Looks without improvement before the stage stops.
    """

    def __init__(self, metric: str, *, greater_is_better: bool, patience: int) -> None:
        self.metric = metric
        self.sign = 1.0 if greater_is_better else -1.0
        self.patience = patience

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The checkpoint that is resumed from may be the last one already."""
        control.should_training_stop = self._is_over(state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after the look that was one too many."""
        control.should_training_stop = control.should_training_stop or self._is_over(state)

    def _is_over(self, state: TrainerState) -> bool:
        # What the model was before the first step is no candidate: that would be no stage at all.
        looks = [
            self.sign * row[self.metric]
            for row in state.log_history
            if self.metric in row and row["step"] > 0
        ]
        return bool(looks) and len(looks) - 1 - looks.index(max(looks)) >= self.patience


def show_progress(trainer: Trainer) -> None:
    """Replace the trainer's own reporting by a bar."""
    for chatty in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(chatty)
    trainer.add_callback(QuietProgress())


def latest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint under `out/checkpoints` that was written whole; broken newer ones are removed.

    The trainer writes checkpoints in place: the state file comes last, so one that lacks it was cut off.
    """
    folder = out / "checkpoints"
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        if _is_whole(checkpoint):
            logger.info("Going on from step %s.", checkpoint.name.rpartition("-")[2])
            return checkpoint
        logger.warning("The checkpoint %s was cut off; it is removed.", checkpoint.name)
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / "trainer_state.json")
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            with safe_open(file, framework="pt") as handle:
                handle.keys()
    except (DiscernmentError, OSError, SafetensorError):
        return False
    return bool(weights) and (checkpoint / "optimizer.pt").is_file()
