"""What a trainer of transformers shows: one bar, and no printed lines."""

import logging
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState


class QuietProgress(ProgressCallback):
    """The trainer's progress bar, with the loss beside it instead of a printed line a step."""

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Show the loss."""
        bar: Any = self.training_bar
        if bar is not None and "loss" in (logs or {}):
            bar.set_postfix_str(f"loss {float(logs['loss']):.3f}")


def show_a_bar_alone(trainer: Trainer) -> None:
    """Show a bar instead of the trainer's own reporting, and none with `--quiet`, which silences our own log too."""
    for chatty in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(chatty)
    # Where nobody has set a level, as in Python, it is 0.
    if logging.getLogger("discernment").level <= logging.INFO:
        trainer.add_callback(QuietProgress())
