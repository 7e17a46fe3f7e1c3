"""The trainer of one layer towards states turned along the direction of refusal, which `training.projection` uses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from discernment.models.cut import CutModel
from discernment.models.precision import choose_device, trains_mixed
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label
from discernment.training.batches import Collator, EpochSampler, PromptRows
from discernment.training.cut_states import batch_states, pooled_states
from discernment.training.held import HeldStates, WithStates, held_states
from discernment.training.history import HistoryCallback
from discernment.training.losses import pool
from discernment.training.options import steps_of, trainer_arguments
from discernment.training.projection import ProjectionOptions
from discernment.training.stage_trainer import StageTrainer

HISTORY = {"loss": "loss", "learning_rate": "learning_rate"}


def targets(states: Tensor, labels: Sequence[Label], alpha: float) -> Tensor:
    """What states are to become.

    Args:
        states: States of prompts at one layer, `[prompts, hidden]`.
        labels: Their labels; toxic and benign ones make the direction.
        alpha: How far they are turned.

    Returns:
        `[prompts, hidden]`.
    """
    toxic = torch.tensor([label.should_refuse for label in labels], device=states.device)
    benign = torch.tensor([label is Label.BENIGN for label in labels], device=states.device)
    direction = nn.functional.normalize(states[toxic].mean(0) - states[benign].mean(0), dim=0)
    along = (states @ direction)[:, None] * direction
    return states + torch.where(toxic, alpha, -alpha)[:, None] * along


class ProjectionTrainer(StageTrainer):
    """Trains the last layer of a cut model towards targets that are made anew before each pass.

    Args:
        model: The cut model.
        rows: The training rows, whose label is their number.
        labels: What each prompt is.
        options: How to train.
        pad_id: The padding token.
        held: What the layers in front put out for the rows.
        **kwargs: As for `transformers.Trainer`.
    """

    def __init__(
        self,
        model: CutModel,
        rows: PromptRows,
        labels: Sequence[Label],
        options: ProjectionOptions,
        pad_id: int,
        held: HeldStates | None,
        **kwargs: Any,
    ) -> None:
        collate: Any = Collator(pad_id) if held is None else WithStates(Collator(pad_id), held)
        super().__init__(model=model, data_collator=collate, train_dataset=rows, **kwargs)
        self.cut, self.rows, self.labels, self.options = model, rows, labels, options
        self.pad_id, self.held = pad_id, held
        self.targets = torch.empty(0)
        self.add_callback(_Aim(self))

    def aim(self) -> None:
        """Make the targets from what the states are now."""
        sequences = [row["input_ids"] for row in self.rows.rows]
        held = None if self.held is None else [self.held[n] for n in range(len(sequences))]
        states = pooled_states(self.cut, sequences, self.pad_id, self.options.batch_size, held=held)
        self.targets = targets(states, self.labels, self.options.alpha)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One minus the cosine of states and targets, averaged over the prompts."""
        hidden = batch_states(model, inputs, mixed=self.args.bf16)
        states = pool(hidden, inputs["attention_mask"], "last")
        wanted = self.targets[inputs["labels"].cpu()].to(states.device)
        loss = (1 - nn.functional.cosine_similarity(states, wanted)).mean()
        return (loss, hidden) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        def order(generator: torch.Generator) -> list[int]:
            found: list[int] = torch.randperm(len(self.rows), generator=generator).tolist()
            return found

        return EpochSampler(order, len(self.rows), self.options.seed)


class _Aim(TrainerCallback):
    """Makes the targets before each pass."""

    def __init__(self, trainer: ProjectionTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Aim anew."""
        self.trainer.aim()


def make_trainer(
    start: PolicySpec,
    policy: Policy,
    cut: CutModel,
    rows: PromptRows,
    labels: Sequence[Label],
    options: ProjectionOptions,
    out: Path,
) -> ProjectionTrainer:
    """The trainer of the last layer of a cut model.

    Args:
        start: The policy that the stage starts from.
        policy: The model with its chat format.
        cut: The cut model.
        rows: The training rows.
        labels: What each prompt is.
        options: How to train.
        out: The stage's directory.
    """
    mixed, held = trains_mixed(start.model), None
    if cut.layer > 1 and cut.takes_states(policy.pad_id):
        held = held_states(
            policy.model,
            cut.found.path,
            cut.layer - 1,
            {row["row"]: row["input_ids"] for row in rows.rows},
            batch_size=options.batch_size,
            pad_id=policy.pad_id,
            folder=out,
            mixed=mixed,
        )
    steps = steps_of(options, len(rows), options.rounds)
    settings = trainer_arguments(options, out, steps, choose_device(start.model), mixed=mixed)
    # A checkpoint within a pass would lack the states that its targets were made of.
    settings["save_strategy"] = "epoch" if options.checkpoint_every else "no"
    settings["gradient_checkpointing"] = False  # of one layer
    return ProjectionTrainer(
        cut,
        rows,
        labels,
        options,
        policy.pad_id,
        held,
        args=TrainingArguments(**settings, num_train_epochs=options.rounds),
        callbacks=[HistoryCallback(out / "history.jsonl", HISTORY)],
    )
