"""Mixtures of experts whose weights lie in one tensor for all experts, `[experts, ...]`."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")
"""How transformers describes the weights of such a module (`use_experts_implementation`)."""


class Routing(NamedTuple):
    """Which expert reads which token. A slot is one token at one of its experts; slots are sorted by expert.

    Attributes:
        experts: The expert of each slot, `[slots]`.
        tokens: The token of each slot, `[slots]`, counted through the whole batch.
    """

    experts: Tensor
    tokens: Tensor


class ExpertsRun(NamedTuple):
    """What passes through the two linear maps of each expert.

    Attributes:
        routing: Which expert reads what.
        up_input: What the first map reads, `[slots, inputs]`, with a column of ones for its bias.
        up_output: What comes out of it, `[slots, outputs]`.
        down_input: What the second map reads, `[slots, inputs]`, times the slot's weight; a column with the weight
            itself is for its bias.
        output: The sum over the slots of each token, `[tokens, outputs]`.
    """

    routing: Routing
    up_input: Tensor
    up_output: Tensor
    down_input: Tensor
    output: Tensor


def is_experts(module: nn.Module) -> bool:
    """Whether the module is a set of experts as transformers writes them, with nothing behind the second map."""
    if not all(isinstance(getattr(module, flag, None), bool) for flag in _FLAGS):
        return False
    if module.has_post_expert_norm or getattr(module, "_is_expert_parallel", False):
        return False
    weights = [getattr(module, name, None) for name in ("down_proj", f"{_first(module)}_proj")]
    return all(isinstance(weight, Tensor) and weight.ndim == 3 for weight in weights)


def runs_as_experts(arguments: tuple[Any, ...]) -> bool:
    """Whether these are the arguments of experts: tokens `[tokens, hidden]`, their experts, and the weights of these."""
    if len(arguments) != 3 or not all(isinstance(a, Tensor) and a.ndim == 2 for a in arguments):
        return False
    hidden, experts, weights = arguments
    return (
        len({len(a) for a in arguments}) == 1
        and experts.shape == weights.shape
        and not experts.is_floating_point()
        and hidden.is_floating_point()
    )


def run_experts(module: nn.Module, hidden: Tensor, experts: Tensor, weights: Tensor) -> ExpertsRun:
    """Run experts, so that what goes into their maps and comes out of them can be seen.

    Args:
        module: The experts.
        hidden: `[tokens, hidden]`.
        experts: The experts of each token, `[tokens, k]`.
        weights: How much each of them counts, `[tokens, k]`.
    """
    m: Any = module
    order = experts.flatten().argsort(stable=True)
    chosen, tokens = experts.flatten()[order], order // experts.shape[1]
    weight = weights.flatten()[order][:, None]
    up_input = hidden[tokens]
    first = _first(module)
    up = _grouped(up_input, getattr(m, f"{first}_proj"), chosen, m.is_transposed)
    if m.has_bias:
        up = up + getattr(m, f"{first}_proj_bias")[chosen]
    inner = m._apply_gate(up) if m.has_gate else m.act_fn(up)
    down_input = inner * weight
    down = _grouped(down_input, m.down_proj, chosen, m.is_transposed)
    if m.has_bias:
        down = down + weight * m.down_proj_bias[chosen]
        up_input = torch.cat([up_input, torch.ones_like(up_input[:, :1])], dim=1)
        down_input = torch.cat([down_input, weight.to(down_input.dtype)], dim=1)
    output = torch.zeros_like(hidden).index_add(0, tokens, down.to(hidden.dtype))
    return ExpertsRun(Routing(chosen, tokens), up_input.detach(), up, down_input.detach(), output)


def _first(module: Any) -> str:
    return "gate_up" if module.has_gate else "up"


def _grouped(inputs: Tensor, weights: Tensor, experts: Tensor, transposed: bool) -> Tensor:
    """Each row times the weight of its expert; rows are sorted by expert."""
    present, counts = experts.unique_consecutive(return_counts=True)
    pieces = inputs.split(counts.tolist())
    rows = [
        piece.to(weights.dtype) @ (weights[expert] if transposed else weights[expert].T)
        for expert, piece in zip(present.tolist(), pieces, strict=True)
    ]
    return torch.cat(rows)
