"""What trainers of TRL have in common here: they leave the model as it was but for its weights, and go on where they were."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_length_grouped_indices

from discernment.files import read_json, read_json_lines
from discernment.models.quantised import activate, is_quantised
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.ranks import is_first, on_first, sharing
from discernment.training.adapters import leave_policy
from discernment.training.batches import EpochSampler
from discernment.training.checkpoints import latest_checkpoint
from discernment.training.history import TellsEpoch
from discernment.training.options import LoraOptions
from discernment.training.sharding import gather_model, is_sharded
from discernment.training.stage_trainer import StageTrainer


class TrlTrainer(StageTrainer):
    """Comes before a trainer of TRL among the bases of a class.

    A mixture of experts is trained without its router loss. Batches are of similar length, and their order depends on
    seed and epoch alone. The model's configurations are put back once it is trained.

    Args:
        model: The model, or the adapter that is wrapped around it.
        args: As for the trainer of TRL; `router_aux_loss_coef` is set to 0.
        **kwargs: As for the trainer of TRL.
    """

    model: Any
    train_dataset: Any
    eval_dataset: Any
    fills = False
    """Whether behind the rows lies one without anything to learn, to fill up the last batch with for several devices."""

    def __init__(self, model: PreTrainedModel | PeftModel, args: Any, **kwargs: Any) -> None:
        # The trainers write `use_cache`, token ids and the router loss into what would be saved.
        self._own: list[tuple[Any, dict[str, Any]]] = [
            (config, deepcopy(vars(config))) for config in (model.config, model.generation_config)
        ]
        args.router_aux_loss_coef = 0.0
        super().__init__(model=model, args=args, **kwargs)
        config = model.config.get_text_config()
        if hasattr(config, "output_router_logits"):
            config.output_router_logits = False
        self.widen()

    def widen(self) -> None:
        """Train in float32 what TRL has made bfloat16, in which small updates are lost: the adapter of a quantised model."""
        if is_quantised(self.model):
            for parameter in self.model.parameters():
                parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and put the model's configurations back."""
        result = super().train(*args, **kwargs)
        for config, values in self._own:
            vars(config).clear()
            vars(config).update(values)
        return result

    def lengths(self, rows: Dataset) -> list[int]:
        """Tokens of each row."""
        return [len(ids) for ids in rows["input_ids"]]

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(*args, **kwargs)
        if isinstance(self.model, PeftModel):  # it has made the loaded adapter the only one
            activate(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        lengths = self.lengths(train_dataset if train_dataset is not None else self.train_dataset)
        lengths = lengths[:-1] if self.fills else lengths
        batch = self.args.train_batch_size * sharing()
        missing = -len(lengths) % batch if self.fills else 0

        def order(generator: torch.Generator) -> list[int]:
            rows = get_length_grouped_indices(lengths, batch, generator=generator)
            return [*rows, *[len(lengths)] * missing]

        sampler = EpochSampler(order, len(lengths) + missing, self.args.seed)
        self.add_callback(TellsEpoch(sampler))
        return sampler


def train_and_leave(
    trainer: TrlTrainer, start: PolicySpec, policy: Policy, lora: LoraOptions | None, out: Path
) -> None:
    """Train from the last whole checkpoint on, where there is one, and leave a policy in `out`.

    Args:
        trainer: The trainer, ready.
        start: The policy that the stage started from.
        policy: The same, loaded.
        lora: Of the adapter that is trained; None where there is none.
        out: The stage's directory; see `leave_policy`.

    Raises:
        TrainingError: If the loss is not finite.
        DiskError: If there is no room for what is left.
    """
    checkpoint = on_first(latest_checkpoint, out, sharded=is_sharded(trainer))
    # A checkpoint of an epoch's last step is written before that epoch's look at the validation prompts.
    if trainer.args.eval_strategy == "epoch" and checkpoint is not None:
        trainer.args.eval_on_start = on_first(_lacks_a_look, checkpoint, out)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    gather_model(trainer)
    trained = trainer.accelerator.unwrap_model(trainer.model)
    if is_first():
        leave_policy(start, trained, policy.chat, lora, out)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _lacks_a_look(checkpoint: Path, out: Path) -> bool:
    """Whether a checkpoint ends an epoch whose validation loss was not written before the interruption."""
    state, history = read_json(checkpoint / "trainer_state.json"), out / "history.jsonl"
    rows = read_json_lines(history, allow_torn_end=True) if history.exists() else ()
    looked = any("validation_loss" in row and row["step"] == state["global_step"] for _, row in rows)
    return float(state["epoch"]).is_integer() and not looked
