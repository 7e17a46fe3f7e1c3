"""The linear modules of a network: torch's own, and GPT-2's, whose weights lie the other way round.

transformers is imported when one is looked for: a run that is done already has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from torch import nn

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D

Linear: TypeAlias = "nn.Linear | Conv1D"


def is_linear(module: nn.Module) -> TypeGuard[Linear]:
    """Whether the module is y = x W (+ b) and nothing else."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> TypeGuard[Conv1D]:
    """Whether it is GPT-2's kind, whose weight is `[inputs, outputs]`."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def outputs_of(module: Linear) -> int:
    """How many values it puts out."""
    return module.out_features if isinstance(module, nn.Linear) else module.nf
