"""What the layers of a model put out, without running its head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.models.batch import Batch, one_length, pad
from discernment.models.layers import LayerList
from discernment.models.logits import takes_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layer_outputs(
    layers: LayerList, batch: Batch, take: Callable[[Tensor], Tensor], **given: Tensor
) -> Tensor:
    """What is taken of every layer's output, `[layers, ...]`, on the CPU; at once, since all tokens would take much room.

    Args:
        layers: The model's layers.
        batch: What it reads.
        take: From one output, `[batch, tokens, hidden]`, float32, to what is kept of it.
        **given: More that the model is told, such as the attention mask.

    Raises:
        ModelError: If the layers put out something else than one state a token.
    """
    found: list[Tensor] = []

    def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple | list) else output).float()
        if hidden.shape[:-1] != batch.input_ids.shape:
            raise ModelError(
                f"The layers of {type(layers.owner).__name__} do not put out one state a token; use another model for "
                "what needs states of a layer."
            )
        found.append(take(hidden).cpu())

    with ExitStack() as hooks:
        for layer in layers.layers:
            hooks.enter_context(layer.register_forward_hook(keep))
        layers.reader(input_ids=batch.input_ids, use_cache=False, **given)
    return torch.stack(found)


@torch.no_grad()
def end_states(
    model: PreTrainedModel, layers: LayerList, rows: Sequence[Sequence[int]], last: int, pad_id: int
) -> Tensor:
    """States after every layer at the last tokens of each row, `[layers, rows, last, hidden]`, float32, on the CPU.

    Args:
        model: The model.
        layers: Its layers.
        rows: Token ids, at least `last` each.
        last: How many tokens.
        pad_id: The padding token.
    """
    padded = takes_padding(model, pad_id)
    groups = [list(range(len(rows)))] if padded else one_length([len(row) for row in rows])
    parts = []
    for group in groups:
        batch = pad([rows[n] for n in group], pad_id, "left", model.device)
        told = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids} if padded else {}
        parts.append(layer_outputs(layers, batch, lambda hidden: hidden[:, -last:], **told))
    order = torch.tensor([n for group in groups for n in group])
    return torch.cat(parts, dim=1)[:, order.argsort()]
