"""A backward pass through a model, layer by layer, that leaves the gradients of all prompts' output rows.

Only what lies between two layers is kept from one to the next: the gradient of the residual stream. A layer is run
again, its modules' gradients of all prompts are brought together and contracted, and then they are forgotten. So
memory is that of one layer, and the number of backward passes is that of prompts and rows.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.kernel.capture import Call, is_linear, lookup_scale, parameter_owners, recorded
from discernment.kernel.collect import Block, Collector, Lookup
from discernment.kernel.gram import Factor, Storage
from discernment.kernel.instrument import Clock
from discernment.kernel.rows import OutputRows
from discernment.models.batch import Batch, common_prefix, length_sorted_batches
from discernment.models.layers import find_layers
from discernment.policies.policy import Policy

Consumer = Callable[[str, Factor], None]
"""Gets the part's name and the gradients of one group of its parameters."""


class BackwardPass:
    """The backward pass over a list of token sequences.

    Args:
        policy: The policy; its model must be in `measuring`.
        sequences: Token ids, longest first.
        positions: How many positions at the end of each sequence have logits that count.
        batch_size: Sequences a pass.
        memory: Bytes that one layer's gradients may take.
        wanted: Whether the parameters of the module with a given name count.

    Raises:
        ModelError: If the model's parameters cannot be covered.
    """

    def __init__(
        self,
        policy: Policy,
        sequences: Sequence[Sequence[int]],
        positions: Sequence[int],
        *,
        batch_size: int,
        memory: float,
        wanted: Callable[[str], bool],
    ) -> None:
        self.policy = policy
        self.model: Any = policy.model
        self.sequences = sequences
        self.positions = positions
        self.wanted = wanted
        self.storage = Storage(memory)
        self.clock = Clock()
        found = find_layers(self.model)
        self.layers = list(found.layers)
        self.owners = parameter_owners(self.model)
        self.inside = [
            {name: m for name, m in self.owners.items() if f"{name}.".startswith(f"{found.path}.{n}.")}
            for n in range(len(self.layers))
        ]
        head = self.model.get_output_embeddings()
        self.head = getattr(head, "base_layer", head)
        self._check_covered()
        of_layers = {name for inside in self.inside for name in inside}
        self.outside = {name: m for name, m in self.owners.items() if name not in of_layers}
        self.before: set[str] = set()
        self.shared = len(common_prefix(sequences))
        self.blocks: list[Block] = []
        if self.model.config._attn_implementation == "eager" and self.model.dtype is torch.float64:
            batch_size = 1  # its masks overflow in the float32 softmax, and padding gives NaN
        for prompts in length_sorted_batches([len(s) for s in sequences], batch_size):
            self.blocks.append(self._forward(prompts))

    # ------------------------------------------------------------------ forward

    @torch.no_grad()
    def _forward(self, prompts: list[int]) -> Block:
        batch = self.policy.batch([self.sequences[p] for p in prompts])
        positions = [self.positions[p] for p in prompts]
        arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hidden: list[Tensor] = []

        def before_layer(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden.append(given[0] if given else named["hidden_states"])
            arguments.append((given[1:], {k: v for k, v in named.items() if k != "hidden_states"}))

        def after_last(module: nn.Module, given: Any, output: Any) -> None:
            hidden.append(_first(output))

        def outside(name: str) -> Callable[..., None]:
            def note(*_: Any) -> None:
                if not hidden:
                    self.before.add(name)

            return note

        with self.clock("forward"), ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_pre_hook(before_layer, with_kwargs=True))
            hooks.enter_context(self.layers[-1].register_forward_hook(after_last))
            for name, module in self.outside.items():
                hooks.enter_context(module.register_forward_pre_hook(outside(name)))
            logits = self._run(batch, max(positions)).logits
        if len(hidden) != len(self.layers) + 1:
            raise ModelError(
                f"{type(self.model).__name__} does not run each of its {len(self.layers)} layers once, so its "
                "gradients cannot be passed back through them."
            )
        lengths = [len(self.sequences[p]) for p in prompts]
        return Block(prompts, batch, lengths, positions, arguments, hidden, logits)

    def _run(self, batch: Batch, positions: int) -> Any:
        return self.model(
            **batch._asdict(), position_ids=batch.position_ids, logits_to_keep=positions, use_cache=False
        )

    def not_finite(self) -> list[int]:
        """The prompts whose hidden states or logits are not finite."""
        found = []
        for block in self.blocks:
            last = torch.where(block.tokens[..., None], block.hidden[-1], 0)
            for row, prompt in enumerate(block.prompts):
                logits = block.logits[row, -block.positions[row] :]
                if not (last[row].isfinite().all() and logits.isfinite().all()):
                    found.append(prompt)
        return found

    def logits(self) -> Tensor:
        """Logits of all prompts, `[prompts, positions, vocabulary]`, their own positions at the end."""
        longest = max(self.positions)
        first = self.blocks[0].logits
        found = first.new_zeros(len(self.sequences), longest, first.shape[-1])
        for block in self.blocks:
            found[block.prompts, -block.logits.shape[1] :] = block.logits
        return found

    # ------------------------------------------------------------------ backward

    def tail(self, rows: OutputRows | None, consume: Consumer) -> None:
        """From the logits, or (without `rows`) from each entry of the head's input, to the last layer's output."""
        modules = {n: m for n, m in self.outside.items() if n not in self.before}
        collector = self._collector()
        for block in self.blocks:
            leaf = block.hidden[-1].detach().requires_grad_()
            into_head: list[Tensor] = []

            def feed(module: nn.Module, given: Any, output: Any, leaf: Tensor = leaf) -> Any:
                return leaf if isinstance(output, Tensor) else (leaf, *output[1:])

            def keep(module: nn.Module, given: Any, into_head: list[Tensor] = into_head) -> None:
                into_head.append(given[0])

            with (
                self.layers[-1].register_forward_hook(feed),
                self.head.register_forward_pre_hook(keep),
                self.clock("forward"),
                recorded(modules) as calls,
            ):
                logits = self._run(block.batch, max(block.positions)).logits
            block.head_input = into_head[0].detach()
            cotangents = _cotangents(block, rows, into_head[0])
            target = logits
            if rows is None:
                target = into_head[0]
                head_call = next(call for call in calls if call.module is self.head)
                (block.slopes,) = torch.autograd.grad(logits.sum(), head_call.output, retain_graph=True)
                calls = [call for call in calls if call is not head_call]
            gradients = self._backward(block, target, leaf, calls, cotangents, rows)
            self._collect(collector, block, calls, gradients)
        self._consume(collector, "norm", consume)

    def layer(self, number: int, consume: Consumer) -> None:
        """Through layer `number` (counted from 1), from its output to its input."""
        module = self.layers[number - 1]
        modules = {name: inside for name, inside in self.inside[number - 1].items() if self.wanted(name)}
        collector = self._collector()
        for block in self.blocks:
            leaf = block.hidden[number - 1].detach().requires_grad_()
            given, named = block.arguments[number - 1]
            with self.clock("forward"), recorded(modules) as calls:
                output = _first(module(leaf, *given, **named))
            self._check_repeats(block, output.detach(), block.hidden.pop(), number)
            assert block.gradient is not None
            gradients = self._backward(block, output, leaf, calls, block.gradient.unbind(1))
            self._collect(collector, block, calls, gradients)
        self._consume(collector, f"layer {number}", consume)

    def front(self, consume: Consumer) -> list[Lookup]:
        """From the first layer's input to the embeddings.

        Returns:
            Each call of an embedding with the gradients of its rows, `[prompts, rows, tokens, hidden]`.
        """
        modules = {n: m for n, m in self.outside.items() if n in self.before}
        collector = self._collector()
        lookups: list[Lookup] = []
        for block in self.blocks:
            reached: list[Tensor] = []

            def stop(module: nn.Module, given: Any, named: Any, reached: list[Tensor] = reached) -> None:
                reached.append(given[0] if given else named["hidden_states"])
                raise _ReachedError

            with (
                self.layers[0].register_forward_pre_hook(stop, with_kwargs=True),
                recorded(modules) as calls,
                suppress(_ReachedError),
                self.clock("forward"),
            ):
                self._run(block.batch, 1)
            assert block.gradient is not None
            gradients = self._backward(block, reached[0], None, calls, block.gradient.unbind(1))
            for call, found in zip(calls, gradients, strict=True):
                if isinstance(call.module, nn.Embedding):
                    lookups.append(Lookup(block, call, lookup_scale(call) * torch.stack(found, 1)))
            others = [n for n, call in enumerate(calls) if not isinstance(call.module, nn.Embedding)]
            self._collect(collector, block, [calls[n] for n in others], [gradients[n] for n in others])
        collector.add_lookups(lookups)
        self._consume(collector, "embeddings", consume)
        return lookups

    def _backward(
        self,
        block: Block,
        target: Tensor,
        leaf: Tensor | None,
        calls: Sequence[Call],
        cotangents: Sequence[Tensor],
        rows: OutputRows | None = None,
    ) -> list[list[Tensor]]:
        """Gradients of each call's output, one a row; `block.gradient` moves on to `leaf`."""
        sought = [call.output for call in calls] + ([leaf] if leaf is not None else [])
        found: list[list[Tensor]] = [[] for _ in sought]
        with self.clock("backward"):
            for row, cotangent in enumerate(cotangents):
                last = row == len(cotangents) - 1
                gradients: Any = torch.autograd.grad(
                    target, sought, cotangent, retain_graph=not last, allow_unused=True
                )
                for n, gradient in enumerate(gradients):
                    if gradient is None:
                        name = calls[n].name if n < len(calls) else "a layer"
                        raise ModelError(
                            f"The output of {name} does not reach the logits through the hidden states alone, so the "
                            "kernel cannot cover it; measure a part of the model with `layers`."
                        )
                    is_head = n < len(calls) and calls[n].module is self.head
                    found[n].append(self._of_columns(gradient, rows) if rows and is_head else gradient)
        if leaf is not None:
            block.gradient = torch.stack(found.pop(), dim=1)
        return found

    # ------------------------------------------------------------------ gathering

    def _collector(self) -> Collector:
        mean = sum(map(len, self.sequences)) / len(self.sequences)
        return Collector(self.storage, self.shared, mean, self.head, self.wanted)

    def _collect(
        self, collector: Collector, block: Block, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]]
    ) -> None:
        with self.clock("contraction"):
            collector.add(block, calls, gradients)

    def _consume(self, collector: Collector, part: str, consume: Consumer) -> None:
        with self.clock("contraction"):
            for name, factor in collector.factors.items():
                consume("head" if self.owners.get(name) is self.head else part, factor)
            self.storage.clear()

    def _of_columns(self, gradient: Tensor, rows: OutputRows) -> Tensor:
        """The gradient of the head's output, for the tokens that occur in rows: it has no others."""
        some = gradient[..., rows.columns]
        if not torch.isclose(some.abs().sum(), gradient.abs().sum(), rtol=1e-4):
            raise ModelError(
                f"{type(self.model).__name__} mixes the logits of tokens behind its head, so that rows of single "
                "tokens cannot be measured; use `rows: probes`."
            )
        return some

    # ------------------------------------------------------------------ checks

    def _check_covered(self) -> None:
        if self.head is None or not is_linear(self.head):
            raise ModelError(
                f"{type(self.model).__name__} has no linear head, so it gives no logits to measure."
            )
        if not any(is_linear(m) for inside in self.inside for m in inside.values()):
            raise ModelError(
                f"{type(self.model).__name__} has no linear layers, which are what the kernel is built from."
            )
        for name, module in self.owners.items():
            if isinstance(module, nn.ParameterList | nn.ParameterDict):
                raise ModelError(
                    f"The kernel cannot cover the parameters in {name} ({type(module).__name__})."
                )
        seen: dict[int, str] = {}
        tied = {id(self.head.weight)}
        for name, module in self.owners.items():
            for parameter in module.parameters(recurse=False):
                first = seen.setdefault(id(parameter), name)
                if first != name and id(parameter) not in tied:
                    raise ModelError(f"{first} and {name} share parameters, which the kernel cannot cover.")

    def _check_repeats(self, block: Block, output: Tensor, before: Tensor, number: int) -> None:
        """A layer that is run again by itself must give what it gave within the model."""
        again, first = (torch.where(block.tokens[..., None], x, 0) for x in (output, before))
        if float((again - first).norm()) > 1e-3 * float(first.norm()):
            raise ModelError(
                f"Layer {number} of {type(self.model).__name__} gets more than the hidden states from the layers "
                "before it, so its gradients cannot be passed back through it."
            )


class _ReachedError(Exception):
    """The first layer has been reached."""


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _cotangents(block: Block, rows: OutputRows | None, into_head: Tensor) -> list[Tensor]:
    """One cotangent of the logits (or of the head's input) for each row."""
    length = max(block.positions)
    if rows is not None:
        vocabulary = block.logits.shape[-1]
        return [
            rows.cotangent(block.prompts, row, vocabulary)[:, -length:] for row in range(rows.values.shape[1])
        ]
    n, _, width = into_head.shape
    unit = torch.eye(length * width, dtype=into_head.dtype, device=into_head.device)
    return [row.view(1, length, width).expand(n, -1, -1) for row in unit]
