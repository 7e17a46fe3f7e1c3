"""Jacobians by plain autograd, one prompt at a time: the reference for the gradient kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def jacobian(
    model: PreTrainedModel,
    tokens: Sequence[int],
    directions: Tensor,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Tensor:
    """Gradients of v . z for each direction v, `[directions, parameters]`.

    Args:
        model: The model.
        tokens: The sequence.
        directions: `[directions, positions, vocabulary]`; the positions are the sequence's last ones.
        wanted: Which parameters count, by their names; tied ones have one name.
    """
    flags = {p: p.requires_grad for p in model.parameters()}
    model.requires_grad_(True)
    parameters = [p for name, p in model.named_parameters() if wanted(name)]
    logits = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -directions.shape[1] :]
    found = torch.autograd.grad(
        logits, parameters, directions.to(logits), is_grads_batched=True, allow_unused=True
    )
    rows = [
        torch.zeros(len(directions), p.numel()) if g is None else g.flatten(1)
        for p, g in zip(parameters, found, strict=True)
    ]
    for parameter, flag in flags.items():
        parameter.requires_grad_(flag)
    return torch.cat(rows, dim=1).double()


def kernel(jacobians: Sequence[Tensor]) -> Tensor:
    """`[prompts, rows, prompts, rows]`."""
    return torch.stack([torch.stack([a @ b.T for b in jacobians], dim=1) for a in jacobians])


def unit_rows(tokens: Sequence[int], vocabulary: int) -> Tensor:
    """One direction for each token, at the last position."""
    return torch.eye(vocabulary, dtype=torch.float64)[list(tokens)][:, None]


def in_double(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64 throughout: some norms go through float32, so they are replaced by torch's own."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                size = child.weight.shape[0]
                eps = getattr(child, "eps", None) or child.variance_epsilon
                norm = nn.RMSNorm(size, eps=eps)
                # Gemma's norms multiply by 1 + weight.
                offset = 1.0 if type(child).__name__.startswith("Gemma") else 0.0
                norm.weight = nn.Parameter(child.weight.detach() + offset)
                setattr(module, name, norm)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the grouped product knows no float64
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    return model.double().eval()
