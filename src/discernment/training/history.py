"""What a training stage tells while it trains: its numbers in a file, a bar, whether it goes on, and the epoch."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.diagnosis.looks import DynamicsCallback
from discernment.errors import TrainingError
from discernment.files import append_json_lines, read_json_lines, write_json_lines
from discernment.models.training_bar import show_a_bar_alone
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet
from discernment.ranks import is_first
from discernment.training.batches import EpochSampler
from discernment.training.sharding import is_sharded


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
        if not is_first():
            return
        # Before the first checkpoint all begins anew, the look at step 0, too.
        goes_on = state.global_step > 0 and self.path.exists()
        known = [row for _, row in read_json_lines(self.path, allow_torn_end=True)] if goes_on else []
        write_json_lines(self.path, [row for row in known if row["step"] <= state.global_step])

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write the numbers of one step."""
        found = {self.rename[name]: value for name, value in (logs or {}).items() if name in self.rename}
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"The {bad[0]} is {found[bad[0]]} at step {state.global_step}; lower the learning rate or look for "
                "broken rows in the training data."
            )
        if found and is_first():
            append_json_lines(self.path, [{"step": state.global_step, **found}])


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


class Looks(NamedTuple):
    """Who looks at probe prompts while a stage trains, if anyone does."""

    callback: DynamicsCallback | None

    @property
    def notes(self) -> dict[str, Any]:
        """What the looks cost, for the manifest."""
        return {} if self.callback is None else {"look_seconds": round(self.callback.seconds, 2)}


def watch(
    trainer: Trainer,
    policy: Policy,
    probes: PromptSet | None,
    out: Path,
    options: DynamicsOptions | None,
    whole: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Looks:
    """Show a bar instead of the trainer's own reporting, and look at the probe prompts where there are any.

    Args:
        trainer: The trainer.
        policy: The model in training, with its chat format.
        probes: What to look at.
        out: The stage's directory.
        options: How to look.
        whole: Makes the policy's model whole for the time of a look, where only a part of it is trained.

    Raises:
        DataError: If no prompt among the probes is toxic.
        TrainingError: If the model is spread over devices.
    """
    show_a_bar_alone(trainer)
    if probes is not None and is_sharded(trainer):
        raise TrainingError(
            "Probe prompts cannot be looked at while the model is spread over devices (FSDP); leave the dynamics out, or "
            "start without FSDP."
        )
    if probes is None or not is_first():
        return Looks(None)
    looks = DynamicsCallback(policy, probes, out, options, whole)
    trainer.add_callback(looks)
    return Looks(looks)


class TellsEpoch(TrainerCallback):
    """Tells a sampler the epoch: the trainer does not reach it where several processes go on within an epoch.

    Args:
        sampler: The sampler.
    """

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell it; rows are drawn after this."""
        self.sampler.set_epoch(int(state.epoch or 0))
