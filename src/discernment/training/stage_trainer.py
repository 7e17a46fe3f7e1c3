"""What all trainers here have in common: one device a process, and resumed they end where they would have ended."""

from typing import Any

from transformers import Trainer, TrainingArguments


class StageTrainer(Trainer):
    """Comes before a trainer of another library among the bases of a class.

    Args:
        model: As for that trainer.
        args: As for that trainer; of several GPUs that one process sees, transformers would take all, with a batch for each
            (`DataParallel`), and is told of one.
        **kwargs: As for that trainer.
    """

    def __init__(self, model: Any, args: TrainingArguments, **kwargs: Any) -> None:
        args._n_gpu = min(1, args.n_gpu)
        super().__init__(model=model, args=args, **kwargs)

    # transformers looks whether training is over only behind a step, so that one that is resumed from its last
    # checkpoint, within an epoch, would take another.
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        epoch: Any = super()._run_epoch
        if not self.control.should_training_stop:
            epoch(*args, **kwargs)
