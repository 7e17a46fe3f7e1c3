"""What parameters are used on while a model runs, and the gradients of what comes out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from discernment.kernel.experts import Routing, run_experts
from discernment.kernel.survey import Rules
from discernment.kernel.watch import ParameterWatch, Use
from discernment.models.linear import is_transposed


class Call(NamedTuple):
    """One use of parameters.

    Attributes:
        kind: By which rule their gradient comes from that of the output: a `linear` map, a `lookup` in an embedding,
            `vector` for a small module, `routed` for a linear map of experts, `free` for parameters without a rule.
        name: Name of the module that owns them, within the model.
        module: The module.
        input: Its input, outside the graph; of a `routed` map what is read in each slot; empty for `free`.
        output: Its output, in the graph; the parameter itself for `free`.
        bias: Whether a linear map has a bias.
        routing: Which expert reads what, for `routed`.
    """

    kind: Literal["linear", "lookup", "vector", "routed", "free"]
    name: str
    module: nn.Module
    input: Tensor
    output: Tensor
    bias: bool = False
    routing: Routing | None = None


@contextmanager
def recorded(modules: Mapping[str, nn.Module], rules: Rules) -> Iterator[list[Call]]:
    """Record what the parameters of modules do while the `with` block runs.

    An output that does not depend on anything trainable (an embedding's) becomes a leaf of the graph, so that its
    gradient can be asked for.

    Args:
        modules: The modules, by name.
        rules: By which rule each parameter goes; those without one must require gradients.
    """
    calls = [
        Call("free", f"{name}.{parameter}", module, torch.empty(0), getattr(module, parameter))
        for name, module in modules.items()
        for parameter in rules.free.get(name, ())
    ]

    def use(found: Use) -> Tensor | None:
        key = found.owner, found.parameters
        if key not in (rules.lookups if found.kind == "lookup" else rules.linear):
            return None
        assert found.kind != "other" and found.input is not None and found.output is not None
        name = _map_name(*key)
        bias = len(found.parameters) > 1
        output, given = _in_graph(found.output), found.input.detach()
        calls.append(Call(found.kind, name, modules[found.owner], given, output, bias))
        return output.clone()  # what the model does to it in place must not touch what was recorded

    def vector(name: str, module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        output = _in_graph(output)
        calls.append(Call("vector", name, module, given[0].detach(), output))
        return output.clone()

    def experts(name: str, module: nn.Module, given: tuple[Any, ...], named: Any, output: Any) -> Tensor:
        run = run_experts(module, *given, *named.values())
        for part, into, out in (("up", run.up_input, run.up_output), ("down", run.down_input, run.output)):
            calls.append(Call("routed", f"{name}.{part}", module, into, out, routing=run.routing))
        replaced: Tensor = run.output.to(output.dtype, copy=True)
        return replaced

    with ExitStack() as hooks:
        for name, module in modules.items():
            if name in rules.vectors:
                hooks.enter_context(module.register_forward_hook(partial(vector, name)))
            if name in rules.experts:
                hooks.enter_context(module.register_forward_hook(partial(experts, name), with_kwargs=True))
        hooks.enter_context(ParameterWatch(modules, use))
        yield calls


def scattered_maps(modules: Mapping[str, nn.Module], rules: Rules) -> dict[str, tuple[int, int, bool]]:
    """Linear maps whose rows are not the tokens, once each: how much they read and give, and whether with a bias.

    Args:
        modules: The modules, by name.
        rules: By which rule each parameter goes.
    """
    found = {}
    for (owner, parameters), regular in rules.linear.items():
        if owner in modules and not regular:
            shape = getattr(modules[owner], parameters[0]).shape
            inputs, outputs = shape if is_transposed(modules[owner]) else shape[::-1]
            found[_map_name(owner, parameters)] = inputs, outputs, len(parameters) > 1
    return found


def _map_name(owner: str, parameters: Sequence[str]) -> str:
    return owner if parameters[0] == "weight" else f"{owner}.{parameters[0]}"


def _in_graph(output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()


@contextmanager
def requiring(modules: Mapping[str, nn.Module], rules: Rules) -> Iterator[None]:
    """Let the parameters without a rule require gradients during the `with` block."""
    parameters = [getattr(m, name) for owner, m in modules.items() for name in rules.free.get(owner, ())]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def parameter_owners(model: nn.Module) -> dict[str, nn.Module]:
    """All modules that own parameters themselves, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }


def parameter_gradients(call: Call, gradients: Sequence[Tensor], prompts: int) -> Tensor:
    """Each prompt's gradient of all parameters of a small module (a norm, a bias).

    Args:
        call: The call.
        gradients: Gradients of the output for each output row, each as long as the output.
        prompts: How many prompts there are; input and output have one entry for each, or for each token.

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

    back = torch.stack([g.unflatten(0, (prompts, -1)) for g in gradients], dim=1)
    result: Tensor = torch.func.vmap(of_prompt)(call.input.unflatten(0, (prompts, -1)), back)
    return result
