"""A backward pass through a model, layer by layer, that leaves the gradients of all prompts' output rows.

Only what lies between two layers is kept from one to the next: the gradient of the residual stream. A layer is run
again, its modules' gradients of all prompts are brought together and contracted, and then they are forgotten. So
memory is that of one layer, and the number of backward passes is that of prompts and rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.kernel.capture import Call, parameter_owners, recorded, requiring, scattered_maps
from discernment.kernel.checks import (
    check_covered,
    check_passage,
    check_repeats,
    check_room,
    check_same,
    find_head,
)
from discernment.kernel.collect import Block, Collector, Lookup
from discernment.kernel.gram import Factor, Storage
from discernment.kernel.instrument import Clock
from discernment.kernel.parallel import in_parallel
from discernment.kernel.rows import OutputRows
from discernment.kernel.survey import Rules, Survey
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
        found = find_layers(self.model, policy.layer_path)
        self.layers = list(found.layers)
        self.owners = parameter_owners(self.model)
        self.inside = [
            {name: m for name, m in self.owners.items() if f"{name}.".startswith(f"{found.path}.{n}.")}
            for n in range(len(self.layers))
        ]
        self.head = find_head(self.model)
        check_covered(self.model, self.inside)
        of_layers = {name for inside in self.inside for name in inside}
        self.outside = {name: m for name, m in self.owners.items() if name not in of_layers}
        self.shared = len(common_prefix(sequences))
        self.row_count = 0
        self.blocks: list[Block] = []
        if self.model.config._attn_implementation == "eager" and self.model.dtype is torch.float64:
            batch_size = 1  # its masks overflow in the float32 softmax, and padding gives NaN
        self.rules = self._run_all(batch_size)
        if batch_size > 1 and (self.rules.alone or self.not_finite() or self._feels_padding()):
            self.rules = self._run_all(1)

    # ------------------------------------------------------------------ forward

    def _run_all(self, batch_size: int) -> Rules:
        """Run all sequences; the blocks, and by which rule each parameter goes."""
        survey = Survey(self.owners, self.inside, self.head)
        self.blocks.clear()
        for prompts in length_sorted_batches([len(s) for s in self.sequences], batch_size):
            self.blocks.append(self._forward(prompts, survey))
        rules = survey.rules()
        survey.check(rules, {name: m for name, m in self.owners.items() if self.wanted(name)})
        return rules

    @torch.no_grad()
    def _forward(self, prompts: list[int], survey: Survey) -> Block:
        batch = self.policy.batch([self.sequences[p] for p in prompts])
        positions = [self.positions[p] for p in prompts]
        arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hidden: list[Tensor] = []

        def before_layer(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden.append(given[0] if given else named["hidden_states"])
            arguments.append((given[1:], {k: v for k, v in named.items() if k != "hidden_states"}))

        def after_last(module: nn.Module, given: Any, output: Any) -> None:
            hidden.append(_first(output))

        with self.clock("forward"), ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_pre_hook(before_layer, with_kwargs=True))
            hooks.enter_context(self.layers[-1].register_forward_hook(after_last))
            hooks.enter_context(survey.watching(self.layers, *batch.input_ids.shape))
            logits = self._run(batch, max(positions))
        check_passage(self.model, hidden, len(self.layers), batch.input_ids.shape)
        lengths = [len(self.sequences[p]) for p in prompts]
        return Block(prompts, batch, lengths, positions, arguments, hidden, logits)

    def _feels_padding(self) -> bool:
        """Whether a padded prompt gives other states than by itself, as where a recurrent state reads the padding."""
        block = max(self.blocks, key=lambda block: block.tokens.shape[1] - block.lengths[-1])
        alone = self._forward(block.prompts[-1:], Survey(self.owners, self.inside, self.head))
        expected, found = alone.hidden[-1][0], block.hidden[-1][-1, -block.lengths[-1] :]
        return not float((found - expected).norm()) <= 1e-4 * float(expected.norm())

    def _run(self, batch: Batch, positions: int) -> Tensor:
        """Logits of the last positions."""
        # By itself a prompt stands where the model puts it, which may not begin at 0.
        places = {"position_ids": batch.position_ids} if len(batch.input_ids) > 1 else {}
        output = self.model(**batch._asdict(), **places, logits_to_keep=positions, use_cache=False)
        logits: Tensor = output.logits[:, -positions:]  # some models give those of all positions
        return logits

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
        modules = {
            name: module
            for name, module in self.outside.items()
            if name not in self.rules.before and (self.wanted(name) or module is self.head)
        }
        width = int(self.head.weight.shape[-1])
        self.row_count = rows.values.shape[1] if rows is not None else width * max(self.positions)
        sections = [*self.inside, self.outside]
        check_room(self.storage, self.rules, sections, self.wanted, len(self.sequences) * self.row_count)
        with self._gathering(modules, "norm", consume) as collector:
            for block in self.blocks:
                leaf = block.hidden[-1].detach().requires_grad_()
                into_head: list[Tensor] = []

                def feed(module: nn.Module, given: Any, output: Any, leaf: Tensor = leaf) -> Any:
                    return leaf if isinstance(output, Tensor) else type(output)([leaf, *output[1:]])

                def keep(module: nn.Module, given: Any, into_head: list[Tensor] = into_head) -> None:
                    into_head.append(given[0])

                with (
                    self.layers[-1].register_forward_hook(feed),
                    self.head.register_forward_pre_hook(keep),
                    self.clock("forward"),
                    recorded(modules, self.rules) as calls,
                ):
                    logits = self._run(block.batch, max(block.positions))
                block.head_input = into_head[0].detach()
                cotangent = _cotangents(block, rows, into_head[0])
                target = logits
                if rows is None:
                    target = into_head[0][:, -max(block.positions) :]
                    head_call = next(call for call in calls if call.module is self.head)
                    (block.slopes,) = torch.autograd.grad(logits.sum(), head_call.output, retain_graph=True)
                    calls = [call for call in calls if call is not head_call]
                gradients = self._backward(block, target, leaf, calls, cotangent, rows)
                self._collect(collector, block, calls, gradients)

    def layer(self, number: int, consume: Consumer) -> None:
        """Through layer `number` (counted from 1), from its output to its input."""
        module = self.layers[number - 1]
        modules = {name: inside for name, inside in self.inside[number - 1].items() if self.wanted(name)}
        with self._gathering(modules, f"layer {number}", consume) as collector:
            for block in self.blocks:
                leaf = block.hidden[number - 1].detach().requires_grad_()
                given, named = block.arguments[number - 1]
                with self.clock("forward"), recorded(modules, self.rules) as calls:
                    output = _first(module(leaf, *given, **named))
                check_repeats(self.model, block, output.detach(), block.hidden.pop(), number)
                assert block.gradient is not None
                gradients = self._backward(block, output, leaf, calls, block.gradient.unbind(1).__getitem__)
                self._collect(collector, block, calls, gradients)

    def front(self, consume: Consumer) -> list[Lookup]:
        """From the first layer's input to the embeddings.

        Returns:
            Each call of an embedding with the gradients of its rows, `[prompts, rows, tokens, hidden]`.
        """
        modules = self._front_modules()
        lookups: list[Lookup] = []
        with self._gathering(modules, "embeddings", consume) as collector:
            for block in self.blocks:
                reached: list[Tensor] = []

                def stop(module: nn.Module, given: Any, named: Any, reached: list[Tensor] = reached) -> None:
                    reached.append(given[0] if given else named["hidden_states"])
                    raise _ReachedError

                with (
                    self.layers[0].register_forward_pre_hook(stop, with_kwargs=True),
                    recorded(modules, self.rules) as calls,
                    suppress(_ReachedError),
                    self.clock("forward"),
                ):
                    self._run(block.batch, 1)
                assert block.gradient is not None
                above = block.gradient.unbind(1).__getitem__
                gradients = self._backward(block, reached[0], None, calls, above)
                for call, found in zip(calls, gradients, strict=True):
                    if call.kind == "lookup":
                        shape = block.tokens.shape
                        rows = torch.stack([row.reshape(*shape, -1) for row in found], 1)
                        lookups.append(Lookup(block, call._replace(input=call.input.reshape(shape)), rows))
                others = [n for n, call in enumerate(calls) if call.kind != "lookup"]
                self._collect(collector, block, [calls[n] for n in others], [gradients[n] for n in others])
            collector.add_lookups(lookups)
        return lookups

    @property
    def has_front(self) -> bool:
        """Whether parameters before the first layer count."""
        return bool(self._front_modules())

    def _front_modules(self) -> dict[str, nn.Module]:
        return {n: m for n, m in self.outside.items() if n in self.rules.before and self.wanted(n)}

    def check_whole(self, number: int, rows: OutputRows | None) -> None:
        """Make sure that what came back to the input of layer `number` is the gradient of the model as a whole.

        It is looked at for one prompt and one row, in a single pass through all layers: if one layer hands anything
        on to another that does not go through the hidden states, the two differ. Nor may anything go from the
        embeddings past the input of layer 1. Where no prompt has a finite gradient, there is nothing to look at.

        Raises:
            ModelError: If they do.
        """
        if (known := self._last_finite()) is None:
            return
        prompt, came_back = known
        positions = self.positions[prompt]
        leaf: list[Tensor] = []
        into_head: list[Tensor] = []
        front = self._front_modules() if number == 1 else {}

        def feed(module: nn.Module, given: Any, named: Any) -> Any:
            hidden = given[0] if given else named["hidden_states"]
            leaf.append(hidden.detach().requires_grad_())
            return ((leaf[0], *given[1:]), named) if given else ((), {**named, "hidden_states": leaf[0]})

        with (
            requiring(front, self.rules),
            self.layers[number - 1].register_forward_pre_hook(feed, with_kwargs=True),
            self.head.register_forward_pre_hook(lambda module, given: into_head.append(given[0])),
            recorded(front, self.rules) as calls,
            self.clock("forward"),
        ):
            logits = self._run(self.policy.batch([self.sequences[prompt]]), positions)
            if rows is None:
                target = into_head[0][0, -positions, 0]
            else:
                target = (logits * rows.cotangent([prompt], 0, logits.shape[-1])[:, -positions:]).sum()
            sought = [*leaf, *(call.output for call in calls)]
            expected, *past = torch.autograd.grad(target, sought, allow_unused=True)
        check_same(self.model, number, came_back, expected[0], past)

    def _last_finite(self) -> tuple[int, Tensor] | None:
        """The last prompt with a finite gradient in its first row, and that, `[tokens, hidden]`."""
        for block in reversed(self.blocks):
            assert block.gradient is not None
            for prompt, length, rows in reversed(
                [*zip(block.prompts, block.lengths, block.gradient, strict=True)]
            ):
                if (found := rows[0, -length:]).isfinite().all():
                    return prompt, found
        return None

    def _backward(
        self,
        block: Block,
        target: Tensor,
        leaf: Tensor | None,
        calls: Sequence[Call],
        cotangent: Callable[[int], Tensor],
        rows: OutputRows | None = None,
    ) -> list[list[Tensor]]:
        """Gradients of each call's output, one a row; `block.gradient` moves on to `leaf`."""
        sought = [call.output for call in calls] + ([leaf] if leaf is not None else [])

        def of_row(row: int) -> list[Tensor]:
            found: list[Any] = [
                *torch.autograd.grad(target, sought, cotangent(row), retain_graph=True, allow_unused=True)
            ]
            for n, gradient in enumerate(found):
                if gradient is None:  # what only chooses experts, say, has none
                    found[n] = torch.zeros_like(sought[n])
                elif rows and n < len(calls) and calls[n].module is self.head:
                    found[n] = self._of_columns(gradient, rows)
            return found

        with self.clock("backward"):
            by_row = in_parallel(of_row, range(self.row_count), target.device)
        found = [list(of_call) for of_call in zip(*by_row, strict=True)]
        if leaf is not None:
            block.gradient = torch.stack(found.pop(), dim=1)
        return found

    # ------------------------------------------------------------------ gathering

    @contextmanager
    def _gathering(
        self, modules: Mapping[str, nn.Module], part: str, consume: Consumer
    ) -> Iterator[Collector]:
        """Gather the gradients of modules within the `with` block, and hand them on at its end."""
        mean = sum(map(len, self.sequences)) / len(self.sequences)
        scattered = scattered_maps(modules, self.rules)
        collector = Collector(self.storage, self.shared, mean, self.head, self.wanted, scattered)
        with requiring(modules, self.rules):
            yield collector
        with self.clock("contraction"):
            for name, factor in collector.factors.items():
                consume("head" if self.owners.get(name) is self.head else part, factor)
            self.storage.clear()

    def _collect(
        self, collector: Collector, block: Block, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]]
    ) -> None:
        with self.clock("contraction"):
            collector.add(block, calls, gradients)

    def _of_columns(self, gradient: Tensor, rows: OutputRows) -> Tensor:
        """The gradient of the head's output, for the tokens that occur in rows: it has no others."""
        some = gradient[..., rows.columns]
        if not torch.isclose(some.abs().sum(), gradient.abs().sum(), rtol=1e-4):
            raise ModelError(
                f"{type(self.model).__name__} mixes the logits of tokens behind its head, so that rows of single "
                "tokens cannot be measured; use `rows: probes`."
            )
        return some


class _ReachedError(Exception):
    """The first layer has been reached."""


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


def _cotangents(block: Block, rows: OutputRows | None, into_head: Tensor) -> Callable[[int], Tensor]:
    """Makes the cotangent of the logits (or of the head's input) for a row: all at once would take too much room."""
    length = max(block.positions)
    n, width = len(into_head), into_head.shape[-1]

    def cotangent(row: int) -> Tensor:
        if rows is not None:
            return rows.cotangent(block.prompts, row, block.logits.shape[-1])[:, -length:]
        unit = into_head.new_zeros(length * width)
        unit[row] = 1
        return unit.view(1, length, width).expand(n, -1, -1)

    return cotangent
