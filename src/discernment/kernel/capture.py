"""What goes into the modules that own parameters, and the gradients of what comes out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from discernment.errors import ModelError


class Call(NamedTuple):
    """One call of a module.

    Attributes:
        name: The module's name within the model.
        module: The module.
        input: Its input, outside the graph.
        output: Its output, in the graph.
    """

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """Record the calls of modules while the `with` block runs.

    An output that does not depend on anything trainable (an embedding's) becomes a leaf of the graph, so that its
    gradient can be asked for.

    Args:
        modules: The modules, by name.
    """
    calls: list[Call] = []

    def record(name: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if not (len(arguments) == 1 and isinstance(arguments[0], Tensor) and isinstance(output, Tensor)):
            raise ModelError(
                f"The kernel cannot cover {name} ({type(module).__name__}), which owns parameters and does more "
                "than turn one tensor into another; measure a part of the model with `layers` or `parameters`."
            )
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        calls.append(Call(name, module, arguments[0].detach(), output))
        return output

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(record, name)))
        yield calls


def parameter_owners(model: nn.Module) -> dict[str, nn.Module]:
    """All modules that own parameters themselves, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }


def is_linear(module: nn.Module) -> bool:
    """Whether the module is y = x W (+ b) and nothing else."""
    return isinstance(module, nn.Linear | Conv1D)


def lookup_scale(call: Call) -> float:
    """What an embedding multiplies its rows with: 1, or what the model's own kind of embedding adds to the lookup.

    Raises:
        ModelError: If the output is not a multiple of the rows.
    """
    module: Any = call.module
    rows = nn.functional.embedding(call.input, module.weight.detach())
    scale = float((call.output.detach() * rows).sum() / rows.square().sum())
    if not torch.allclose(call.output.detach(), scale * rows, rtol=1e-4, atol=1e-6):
        raise ModelError(
            f"The kernel cannot cover the embedding {call.name}, whose output is not a multiple of its rows; leave "
            "it out with `layers`."
        )
    return scale


def parameter_gradients(call: Call, gradients: Sequence[Tensor]) -> Tensor:
    """Each prompt's gradient of all parameters of a small module (a norm, a bias).

    Args:
        call: The call.
        gradients: Gradients of the output for each output row, `[batch, ...]` each.

    Returns:
        `[batch, rows, parameters]`.
    """
    parameters = {name: p.detach() for name, p in call.module.named_parameters(recurse=False)}

    def of_prompt(given: Tensor, back: Tensor) -> Tensor:
        def run(values: dict[str, Tensor]) -> Any:
            return torch.func.functional_call(call.module, values, (given,))

        pull: Any = torch.func.vjp(run, parameters)[1]
        found: dict[str, Tensor] = torch.func.vmap(lambda g: pull(g)[0])(back)
        return torch.cat([g.flatten(1) for g in found.values()], dim=1)

    result: Tensor = torch.func.vmap(of_prompt)(call.input, torch.stack(list(gradients), dim=1))
    return result
