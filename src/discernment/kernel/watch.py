"""Seeing what a model's parameters go into, whichever module or function uses them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from discernment.models.linear import is_linear

_CASTS = frozenset({Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.contiguous})
"""What gives a parameter in another type, as routers do that compute in float32."""


class Use(NamedTuple):
    """One function that parameters go into.

    Attributes:
        kind: `linear` for x W (+ b), `lookup` for the rows of an embedding, `other` for whatever else.
        owner: Name of the module that owns the parameters.
        parameters: Their names within it: W and b, or one.
        input: x or token ids; None for `other`.
        output: What comes out; None for `other`.
    """

    kind: Literal["linear", "lookup", "other"]
    owner: str
    parameters: tuple[str, ...]
    input: Tensor | None = None
    output: Tensor | None = None


class ParameterWatch(TorchFunctionMode):
    """Calls `react` with each use of the modules' own parameters, while the `with` block runs.

    Args:
        owners: The modules, by name.
        react: Gets the use; a tensor that it gives back takes the place of the output.
    """

    def __init__(self, owners: Mapping[str, nn.Module], react: Callable[[Use], Tensor | None]) -> None:
        super().__init__()
        self._owners = owners
        self._react = react
        self._known: dict[int, list[tuple[str, str]]] = {}
        self._alive: list[Tensor] = []  # casts, so that no other tensor gets their ids
        for owner, module in owners.items():
            for name, parameter in module.named_parameters(recurse=False):
                self._known.setdefault(id(parameter), []).append((owner, name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function, and look at what went into it."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        touched = [t for t in _tensors([*args, *kwargs.values()]) if id(t) in self._known]
        if not touched or not any(True for _ in _tensors([output])):
            return output
        if any(output is tensor for tensor in touched):
            return output  # the weight itself, as it was or after a change in place: no use of it yet
        if func in _CASTS and touched[0] is args[0]:
            self._known[id(output)] = self._known[id(args[0])]
            self._alive.append(output)
            return output
        use, covered = self._as_rule(func, args, kwargs, output)
        for tensor in touched:
            if not any(tensor is other for other in covered):
                owner, name = self._known[id(tensor)][0]
                self._react(Use("other", owner, (name,)))
        replaced = None if use is None else self._react(use)
        return output if replaced is None else replaced

    def _as_rule(self, func: Any, args: Any, kwargs: Any, output: Any) -> tuple[Use | None, list[Tensor]]:
        """The use, if it is one of those with a rule, and the parameters that this rule is for."""
        if func is F.linear:
            given, weight, bias = _bound(("input", "weight", "bias"), args, kwargs)
        elif func is torch.addmm:
            bias, given, weight = _bound(("input", "mat1", "mat2"), args, kwargs)
        elif func is F.embedding:
            given, weight, bias = *_bound(("input", "weight"), args, kwargs), None
        else:
            return None, []
        kind: Literal["linear", "lookup"] = "lookup" if func is F.embedding else "linear"
        owner, name = self._owner(weight, _looks_up if kind == "lookup" else is_linear)
        if owner is None:
            return None, []
        if bias is None or id(bias) not in self._known:
            return Use(kind, owner, (name,), given, output), [weight]
        names = [n for o, n in self._known[id(bias)] if o == owner]
        if not names:
            return None, []
        return Use(kind, owner, (name, names[0]), given, output), [weight, bias]

    def _owner(self, weight: Any, does: Callable[[nn.Module], bool]) -> tuple[str | None, str]:
        """Whose the weight is: of several modules that share it, the one that does such things."""
        places = self._known.get(id(weight), [])
        fitting = [place for place in places if does(self._owners[place[0]])]
        found = fitting or places
        return found[0] if found else (None, "")


def _looks_up(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _bound(names: tuple[str, ...], args: Any, kwargs: Any) -> list[Any]:
    return [args[n] if n < len(args) else kwargs.get(name) for n, name in enumerate(names)]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
