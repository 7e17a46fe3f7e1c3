"""What the linear modules within layers put out at the end of prompts, and projections of it, folded into their weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.models.batch import Batch, one_length, pad
from discernment.models.layers import LayerList
from discernment.models.linear import is_linear
from discernment.models.logits import takes_padding
from discernment.models.quantised import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from discernment.models.linear import Linear


class Product(NamedTuple):
    """A matrix as a product of two narrow ones: left right^T.

    Attributes:
        left: `[width, rank]`.
        right: `[width, rank]`.
    """

    left: Tensor
    right: Tensor


def linear_modules(model: PreTrainedModel, layers: LayerList, numbers: Sequence[int]) -> dict[str, Linear]:
    """The linear modules of some layers by their names within the layer list, such as `3.mlp.down_proj`.

    Args:
        model: The model.
        layers: Its layers.
        numbers: Which of them, counted from 1.

    Raises:
        ModelError: If weights are quantised, or are those of experts, which read some tokens only.
    """
    kind = type(model).__name__
    if is_quantised(model):
        raise ModelError(
            f"The quantised weights of {kind} cannot be changed; start from a model that is not."
        )
    found = {
        f"{number - 1}.{name}": module
        for number in numbers
        for name, module in layers.layers[number - 1].named_modules()
        if is_linear(module)
    }
    held = {id(module.weight) for module in found.values()}
    others = [
        name
        for number in numbers
        for name, weight in layers.layers[number - 1].named_parameters()
        if weight.ndim > 1 and id(weight) not in held
    ]
    if others or not found:
        what = f"{others[0]} is no linear module" if others else "no linear module is there"
        raise ModelError(
            f"The layers of {kind} cannot be projected module by module ({what}); that is for dense models without experts."
        )
    return found


@torch.no_grad()
def linear_outputs(
    model: PreTrainedModel,
    layers: LayerList,
    modules: dict[str, Linear],
    rows: Sequence[Sequence[int]],
    pooling: Literal["last", "mean"],
    pad_id: int,
    batch_size: int = 32,
) -> dict[str, Tensor]:
    """What modules put out for rows of tokens, `[rows, width]` each, float32, on the CPU.

    Args:
        model: The model.
        layers: Its layers.
        modules: The modules by name, as `linear_modules` gives them.
        rows: Token ids.
        pooling: `last` takes the last token, `mean` the mean over the tokens.
        pad_id: The padding token.
        batch_size: Rows that are run side by side.

    Raises:
        ModelError: If a module does not put out one vector a token.
    """
    found = {name: [torch.empty(0)] * len(rows) for name in modules}
    numbers = [list(range(len(rows)))] if takes_padding(model, pad_id) else one_length([len(r) for r in rows])
    padded = len(numbers) == 1 and takes_padding(model, pad_id)
    for group in numbers:
        for first in range(0, len(group), batch_size):
            some = group[first : first + batch_size]
            batch = pad([rows[n] for n in some], pad_id, "left", model.device)
            told = (
                {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids} if padded else {}
            )
            seen = _run(layers, modules, batch, pooling, told)
            for name, pooled in seen.items():
                for n, row in zip(some, pooled, strict=True):
                    found[name][n] = row
    return {name: torch.stack(outputs) for name, outputs in found.items()}


def _run(
    layers: LayerList, modules: dict[str, Linear], batch: Batch, pooling: str, told: dict[str, Tensor]
) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(module: nn.Module, given: Any, output: Tensor, *, name: str) -> None:
        if output.shape[:-1] != batch.input_ids.shape or name in seen:
            raise ModelError(
                f"The module {name} of {type(layers.owner).__name__} does not put out one vector a token; take other layers."
            )
        hidden = output.float()
        if pooling == "mean":
            mask = batch.attention_mask[..., None]
            seen[name] = ((hidden * mask).sum(1) / mask.sum(1)).cpu()
        else:
            seen[name] = hidden[:, -1].cpu()

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, name=name)))
        layers.reader(input_ids=batch.input_ids, use_cache=False, **told)
    if seen.keys() != modules.keys():
        missing = min(modules.keys() - seen.keys())
        raise ModelError(f"The module {missing} of {type(layers.owner).__name__} is not run on prompts.")
    return seen


@torch.no_grad()
def take_product_out(module: Linear, product: Product, strength: float) -> None:
    """W' = (I - strength M) W, and the same of the bias, so that what the module puts out is (I - strength M) y.

    Args:
        module: The module, which is changed.
        product: M.
        strength: 0 changes nothing.
    """
    if strength == 0:
        return
    weight, bias = module.weight, getattr(module, "bias", None)
    left, right = (part.to(weight.device, torch.float32) for part in product)
    rows = weight.float() if isinstance(module, nn.Linear) else weight.float().T  # outputs by inputs
    changed = rows - strength * left @ (right.T @ rows)
    weight.copy_(changed if isinstance(module, nn.Linear) else changed.T)
    if bias is not None:
        bias.copy_(bias.float() - strength * left @ (right.T @ bias.float()))
