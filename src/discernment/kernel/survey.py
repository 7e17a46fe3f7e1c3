"""By which rule the gradient of each parameter is found; a model says so itself while it runs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.kernel.experts import is_experts, run_experts, runs_as_experts
from discernment.kernel.watch import ParameterWatch, Use


class Rules(NamedTuple):
    """The rules for the parameters of a model.

    Attributes:
        linear: (owner, parameters) of linear maps, and whether their rows are the tokens of the batch, once a run.
        lookups: (owner, parameters) of embeddings.
        vectors: Owners that turn one tensor into another, whose few parameters have gradients that can be held.
        experts: Owners with weights for many experts.
        free: Parameters by owner without a rule: their gradients are held as autograd gives them.
        alone: Whether the prompts have to be run one by one, since some gradients are not told apart in a batch.
        before: Owners that are used before the first layer.
    """

    linear: dict[tuple[str, tuple[str, ...]], bool]
    lookups: frozenset[tuple[str, tuple[str, ...]]]
    vectors: frozenset[str]
    experts: frozenset[str]
    free: dict[str, tuple[str, ...]]
    alone: bool
    before: frozenset[str]


class Survey:
    """Watches the parameters of a model while it runs.

    Args:
        owners: The modules that own parameters, by name.
        layers: The modules of each layer, by name.
        head: The model's head, whose rows are the positions that have logits.
    """

    def __init__(
        self, owners: Mapping[str, nn.Module], layers: Sequence[Mapping[str, nn.Module]], head: nn.Module
    ) -> None:
        self.owners = owners
        self.head = head
        self.depth = len(layers)
        self.home = {name: number for number, inside in enumerate(layers, start=1) for name in inside}
        self.layer = 0
        self.runs = 0
        self.uses: Counter[tuple[str, tuple[str, ...], str]] = Counter()
        self.regular: Counter[tuple[str, tuple[str, ...], str]] = Counter()
        self.others: set[tuple[str, str]] = set()
        self.outside: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.plain: Counter[str] = Counter()
        self.routed: Counter[str] = Counter()
        self.places: dict[str, set[int]] = {}
        self._within: list[str] = []
        self._shape = (0, 0)
        self._single = True

    @contextmanager
    def watching(self, layers: Sequence[nn.Module], prompts: int, tokens: int) -> Iterator[None]:
        """Watch one run of the model on a batch of prompts, padded to a number of tokens."""
        self._shape, self.layer, self.runs = (prompts, tokens), 0, self.runs + 1
        self._single &= prompts == 1
        self._within.clear()
        with ExitStack() as hooks:
            for number, layer in enumerate(layers, start=1):
                hooks.enter_context(layer.register_forward_pre_hook(partial(self._enter_layer, number)))
            hooks.enter_context(layers[-1].register_forward_hook(partial(self._enter_layer, self.depth + 1)))
            for name, module in self.owners.items():
                hooks.enter_context(module.register_forward_pre_hook(partial(self._enter, name)))
                hooks.enter_context(
                    module.register_forward_hook(partial(self._leave, name), with_kwargs=True)
                )
            hooks.enter_context(ParameterWatch(self.owners, self._note))
            yield

    def _enter_layer(self, number: int, *_: Any) -> None:
        self.layer = number

    def _enter(self, name: str, *_: Any) -> None:
        self._within.append(name)

    def _leave(self, name: str, module: nn.Module, given: tuple[Any, ...], named: Any, output: Any) -> None:
        while self._within and self._within.pop() != name:
            pass
        self.calls[name] += 1
        simple = len(given) == 1 and not named and not any(True for _ in module.children())
        if simple and all(_leads(t, self._shape) for t in (given[0], output)):
            self.plain[name] += 1
        arguments = (*given, *named.values())
        if is_experts(module) and runs_as_experts(arguments) and isinstance(output, Tensor):
            within, self._within = self._within, [name]  # what this run uses is used within the module
            again = run_experts(module, *arguments).output
            self._within = within
            real = torch.isfinite(output)
            error = torch.where(real, again - output, 0).norm()
            self.routed[name] += bool(error <= 1e-4 * torch.where(real, output, 0).norm())

    def _note(self, use: Use) -> None:
        self.places.setdefault(use.owner, set()).add(self.layer)
        if use.kind == "other" or (use.kind == "lookup" and use.owner in self.home):
            self.others |= {(use.owner, name) for name in use.parameters}
            if use.owner not in self._within:
                self.outside.add(use.owner)
            return
        assert use.input is not None
        key = use.owner, use.parameters, use.kind
        self.uses[key] += 1
        prompts, tokens = self._shape
        if use.kind == "lookup":
            self.regular[key] += use.input.shape == (prompts, tokens) or (prompts, use.input.numel()) == (
                1,
                tokens,
            )
        else:
            of_tokens = use.input.shape[:-1] in ((prompts, tokens), (prompts * tokens,))
            self.regular[key] += of_tokens or self.owners[use.owner] is self.head

    # ------------------------------------------------------------------ what follows from it

    def rules(self) -> Rules:
        """The rules, when the model has been run on all batches."""
        free: dict[str, set[str]] = {}
        linear: dict[tuple[str, tuple[str, ...]], bool] = {}
        lookups = set()
        for owner, name in sorted(self.others):
            free.setdefault(owner, set()).add(name)
        ways = Counter((owner, name) for owner, parameters, _ in self.uses for name in parameters)
        for (owner, parameters, kind), count in self.uses.items():
            once, fitting = count == self.runs, self.regular[owner, parameters, kind] == count
            several = any(ways[owner, name] > 1 for name in parameters)
            otherwise = not free.get(owner, set()).isdisjoint(parameters)
            if several or otherwise or (kind == "lookup" and not (once and (fitting or not self._single))):
                free.setdefault(owner, set()).update(parameters)
            elif kind == "lookup":
                lookups.add((owner, parameters))
            else:
                linear[owner, parameters] = once and fitting
        ruled = {owner for owner, _ in [*linear, *lookups]}
        vectors = {o for o in free if o not in ruled | self.outside and self._always(self.plain, o)}
        experts = {o for o in free if o not in ruled | self.outside and self._always(self.routed, o)}
        free = {owner: names for owner, names in free.items() if owner not in vectors | experts}
        irregular = any(self.regular[o, p, "lookup"] < self.runs for o, p in lookups)
        return Rules(
            linear=linear,
            lookups=frozenset(lookups),
            vectors=frozenset(vectors),
            experts=frozenset(experts),
            free={owner: tuple(sorted(names)) for owner, names in free.items()},
            alone=bool(free) or irregular or not all(linear.values()),
            before=frozenset(owner for owner, places in self.places.items() if places == {0}),
        )

    def _always(self, fitting: Counter[str], owner: str) -> bool:
        return self.calls[owner] == fitting[owner] == self.runs

    def check(self, rules: Rules, wanted: Mapping[str, nn.Module]) -> None:
        """Make sure that each layer's gradient can be found by itself.

        Raises:
            ModelError: If a module is used in several places.
        """
        for name in wanted:
            places, home = self.places.get(name, set()), self.home.get(name)
            fits = places <= {home} if home else len(places) < 2 and places <= {0, self.depth + 1}
            if not fits:
                raise ModelError(
                    f"{name} ({type(self.owners[name]).__name__}) is used by several layers or between two, so the "
                    "kernel cannot cover it; measure a part of the model with `layers` or `parameters`."
                )
        tied = self.head.weight
        for owner, names in rules.free.items():
            if owner in wanted and any(getattr(self.owners[owner], name) is tied for name in names):
                raise ModelError(
                    f"{owner} shares its weight with the head and does more with it than look up rows, so the kernel "
                    "cannot cover it; leave it out with `layers`."
                )


def _leads(tensor: Any, shape: tuple[int, int]) -> bool:
    """Whether the tensor begins with the prompts of the batch, or with all tokens."""
    return isinstance(tensor, Tensor) and tensor.ndim > 1 and len(tensor) in (shape[0], shape[0] * shape[1])
