"""Models whose weights, gradients and optimizer states are spread over devices (FSDP), as `accelerate config` asks for."""

from typing import Any

from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import Trainer

from discernment.errors import TrainingError
from discernment.ranks import is_first


def shards() -> bool:
    """Whether models are to be spread over devices."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def is_sharded(trainer: Trainer) -> bool:
    """Whether a trainer spreads its model over devices.

    Raises:
        TrainingError: If that was asked for and is not done.
    """
    sharded = bool(trainer.is_fsdp_enabled)
    if shards() and not sharded:
        raise TrainingError(
            "`accelerate` does not spread a model over processors (FSDP), only over devices such as GPUs; start without "
            "FSDP."
        )
    return sharded


def gather_model(trainer: Trainer) -> None:
    """Give the first process a model with all its weights, to be saved; one that is not spread is left as it is.

    Args:
        trainer: Has trained it.
    """
    if not is_sharded(trainer):
        return
    model: Any = trainer.model
    weights = trainer.accelerator.get_state_dict(model)
    if not is_first():
        return
    whole: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for name, part in list(model.named_parameters(remove_duplicate=False)):
        place, _, own = name.rpartition(".")
        parameter = whole.setdefault(id(part), nn.Parameter(weights[name], requires_grad=False))
        setattr(model.get_submodule(place), own, parameter)
