"""The mean of the weights over the last steps of a training stage (stochastic weight averaging, Izmailov et al. 2018)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class LastSteps(nn.Module):
    """Means of the trained weights of a model (with adapters, of their factors), as buffers of its own, float32.

    As a part of what is trained it is in the checkpoints, so that an interrupted stage goes on with it
    (arXiv 1803.05407; here with the stage's own learning rate).

    Args:
        model: The model, whose trained weights are known by now.
        steps: How many steps at the end take part.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.trained = [weights for weights in model.parameters() if weights.requires_grad]
        for number, weights in enumerate(self.trained):
            # In half precision, a mean of many would stop following.
            self.register_buffer(f"mean_{number}", torch.zeros_like(weights, dtype=torch.float32))

    @property
    def means(self) -> list[Tensor]:
        """The mean of each weight."""
        return list(self.buffers())

    @torch.no_grad()
    def take(self, count: int) -> None:
        """Let the present weights, the `count`-th that are taken, into the means."""
        for mean, weights in zip(self.means, self.trained, strict=True):
            mean.lerp_(weights.float(), 1 / count)

    @torch.no_grad()
    def put(self) -> None:
        """Make the means the weights."""
        for mean, weights in zip(self.means, self.trained, strict=True):
            weights.copy_(mean)


class AverageLastSteps(TrainerCallback):
    """Averages the weights over the last steps, and leaves the mean at the end.

    Args:
        last: The means, which have to be a part of the trained model.
    """

    def __init__(self, last: LastSteps) -> None:
        self.last = last

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the weights of a step that counts."""
        count = state.global_step - (state.max_steps - self.last.steps)
        if count > 0:
            self.last.take(count)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the mean."""
        self.last.put()
