"""What writes to a model's residual stream, and taking a direction out of the weights that write.

Attention and feed-forward blocks are found by structure: the entries of a layer that hold matrices. The last linear module
that such a block runs writes what it puts out, or a norm behind the block does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.models.layers import LayerList
from discernment.models.linear import is_linear, outputs_of
from discernment.models.quantised import is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from discernment.models.linear import Linear


_NORMS_BEHIND: WeakKeyDictionary[nn.Module, Mapping[nn.Module, nn.Module]] = WeakKeyDictionary()
"""What `norms_behind` found, so that a rule that acts on every batch does not look each time."""


def writers(model: PreTrainedModel, layers: LayerList) -> list[nn.Module]:
    """The modules whose outputs add up to the residual stream: embeddings, and the blocks of every layer.

    Args:
        model: The model.
        layers: Its layers.
    """
    width = _width(model)
    embeddings = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and module.weight.shape[1] == width
        and not name.startswith(f"{layers.path}.")
    ]
    norms = norms_behind(model, layers)
    return [*embeddings, *(norms.get(block, block) for block in _blocks(model, layers))]


def norms_behind(model: PreTrainedModel, layers: LayerList) -> Mapping[nn.Module, nn.Module]:
    """The norms that stand between a block and the residual stream, by block, as in Gemma 2 and OLMo 2.

    They are found by one token that is read: such a norm is given the very tensor that the block puts out.
    """
    known = _NORMS_BEHIND.get(model)
    if known is not None:
        return known
    found: dict[nn.Module, nn.Module] = {}
    written: dict[int, tuple[nn.Module, Tensor]] = {}
    blocks = _blocks(model, layers)

    def note(module: nn.Module, given: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        written[id(tensor)] = module, tensor  # kept, so that no other gets its id

    def look(module: nn.Module, given: tuple[Any, ...]) -> None:
        if given and id(given[0]) in written:
            found[written[id(given[0])][0]] = module

    with ExitStack() as hooks, torch.no_grad():
        for block in blocks:
            hooks.enter_context(block.register_forward_hook(note))
        for layer in layers.layers:
            for module in layer.children():
                if module not in blocks and any(True for _ in module.parameters()):
                    hooks.enter_context(module.register_forward_pre_hook(look))
        layers.reader(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    _NORMS_BEHIND[model] = found
    return found


def take_out(
    model: PreTrainedModel, layers: LayerList, direction: Tensor, coefficient: float, ids: Sequence[int]
) -> None:
    """Take a direction out of all that writes to the residual stream, in the weights themselves.

    y - c (y . d) d for every y that is written. A head that shares the embeddings' weights keeps them as they were, and
    shares them no longer.

    Args:
        model: The model, which is changed.
        layers: Its layers.
        direction: d, a unit vector, `[hidden]`.
        coefficient: c: 0 changes nothing, 1 takes the direction out.
        ids: Token ids of any prompt, by which the modules are found that write.

    Raises:
        ModelError: If the model is quantised, or a block's last linear module is not found.
    """
    kind = type(model).__name__
    if is_quantised(model):
        raise ModelError(
            f"A direction cannot be taken out of the quantised weights of {kind}; leave `weights` out."
        )
    if norms_behind(model, layers):
        raise ModelError(
            f"{kind} has a norm behind each block, out of which no direction can be taken in the weights; leave `weights` out."
        )
    projections = _projections(model, layers, ids)
    if len(projections) < len(_blocks(model, layers)):
        raise ModelError(
            f"The linear modules that write to the residual stream of {kind} are not found; leave `weights` out."
        )
    _untie(model)
    embeddings = [module for module in writers(model, layers) if isinstance(module, nn.Embedding)]
    with torch.no_grad():
        for module in (*embeddings, *projections):
            d = direction.to(module.weight)
            weight, bias = module.weight, getattr(module, "bias", None)
            if isinstance(module, nn.Linear):  # its rows are what is written, elsewhere its columns
                weight -= coefficient * torch.outer(d, d @ weight)
            else:
                weight -= coefficient * torch.outer(weight @ d, d)
            if bias is not None:
                bias -= coefficient * (bias @ d) * d


def _width(model: PreTrainedModel) -> int:
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[1])


def _blocks(model: PreTrainedModel, layers: LayerList) -> list[nn.Module]:
    """The entries of the layers that hold matrices; a linear module that stands there by itself only if it writes."""
    width = _width(model)
    return [
        block
        for layer in layers.layers
        for block in layer.children()
        if any(parameter.ndim > 1 for parameter in block.parameters())
        and not (is_linear(block) and outputs_of(block) != width)
    ]


def _projections(model: PreTrainedModel, layers: LayerList, ids: Sequence[int]) -> list[Linear]:
    """The last linear module that each block runs and that puts out as much as it does."""
    last: dict[int, Linear] = {}
    width = _width(model)

    def note(module: nn.Module, given: Any, output: Tensor, *, block: int) -> None:
        if output.shape[-1] == width:
            assert is_linear(module)
            last[block] = module

    with ExitStack() as hooks, torch.no_grad():
        for number, block in enumerate(_blocks(model, layers)):
            for module in block.modules():
                if is_linear(module):
                    hooks.enter_context(module.register_forward_hook(partial(note, block=number)))
        layers.reader(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    return list(last.values())


def _untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own where it shares those of the embeddings."""
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
