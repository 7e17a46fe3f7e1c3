"""States that a cut model puts out for prompts: of a batch that is trained on, or measured."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from discernment.models.batch import pad
from discernment.models.cut import CutModel
from discernment.training.attention import quick_attention
from discernment.training.losses import pool

READ = ("input_ids", "attention_mask", "held")
"""What of a batch a cut model reads."""


def batch_states(model: nn.Module, batch: Mapping[str, Tensor], *, mixed: bool) -> Tensor:
    """States after layer l of every token of a training batch, `[batch, length, hidden]`.

    Args:
        model: The cut model, as the trainer has it.
        batch: What the collator made.
        mixed: Whether training computes in bfloat16.
    """
    with quick_attention(batch["input_ids"], mixed=mixed):
        states: Tensor = model(**{name: batch[name] for name in READ if name in batch})
    return states


@torch.no_grad()
def pooled_states(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    batch_size: int = 32,
    pooling: Literal["last", "mean"] = "last",
    held: Sequence[Tensor] | None = None,
) -> Tensor:
    """Pooled states after layer l of encoded prompts, `[prompts, hidden]`, on the CPU, in the given order.

    Args:
        model: The cut model.
        sequences: The token ids.
        pad_id: The padding token.
        batch_size: Prompts a forward pass.
        pooling: See `pool`.
        held: What the layers that are not trained put out for each prompt, `[tokens, hidden]`.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()  # dropout would blur what is measured
    states = []
    for start in range(0, len(sequences), batch_size):
        some = slice(start, start + batch_size)
        batch = pad(sequences[some], pad_id, "right", device)
        given = [] if held is None else [pad_sequence(list(held[some]), batch_first=True).to(device)]
        states.append(pool(model(*batch, *given), batch.attention_mask, pooling).cpu())
    model.train(training)
    return torch.cat(states)


@torch.no_grad()
def token_states(
    cut: CutModel, sequences: Sequence[Sequence[int]], pad_id: int, batch_size: int
) -> list[Tensor]:
    """States after layer l of every token, `[tokens, hidden]` for each prompt, float32, on the CPU.

    Args:
        cut: The cut model.
        sequences: The token ids.
        pad_id: The padding token.
        batch_size: Prompts a forward pass.
    """
    device = next(cut.parameters()).device
    states: list[Tensor] = []
    for start in range(0, len(sequences), batch_size):
        batch = pad(sequences[start : start + batch_size], pad_id, "right", device)
        hidden = cut(*batch).float().cpu()
        states += [row[mask.bool()] for row, mask in zip(hidden, batch.attention_mask.cpu(), strict=True)]
    return states
