"""Bringing the gradients of one part of a model together, for all prompts, by groups of parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from discernment.kernel.capture import Call, parameter_gradients
from discernment.kernel.gram import Factor, Storage, VectorFactor
from discernment.kernel.linear import LinearFactor, Way, cheapest_way
from discernment.kernel.routed import RoutedFactor, Slots
from discernment.models.batch import Batch


@dataclass
class Block:
    """The prompts of one batch.

    Attributes:
        prompts: Their row numbers.
        batch: Their tokens, padded on the left.
        lengths: Number of tokens of each.
        positions: Number of positions whose logits count, at the end of each.
        arguments: What each layer got besides the hidden states.
        hidden: What goes into each layer, and last what comes out of the last one, `[prompts, tokens, hidden]`.
        logits: `[prompts, positions, vocabulary]`.
        gradient: Of the residual stream where the backward pass has got to, `[prompts, rows, tokens, hidden]`.
        head_input: What goes into the head, `[prompts, positions, hidden]`.
        head_gradient: Gradient of the head's output, `[prompts, rows, positions, columns]`.
        slopes: d logits / d head's output, `[prompts, positions, vocabulary]`, for the whole vocabulary.
    """

    prompts: list[int]
    batch: Batch
    lengths: list[int]
    positions: list[int]
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]
    hidden: list[Tensor]
    logits: Tensor
    gradient: Tensor | None = None
    head_input: Tensor | None = None
    head_gradient: Tensor | None = None
    slopes: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """True for tokens, False for padding, `[prompts, tokens]`."""
        return self.batch.attention_mask.bool()


class Lookup(NamedTuple):
    """One call of an embedding.

    Attributes:
        block: The prompts.
        call: The call.
        gradients: Gradients of the rows that were looked up, `[prompts, rows, tokens, hidden]`.
    """

    block: Block
    call: Call
    gradients: Tensor

    @property
    def trained(self) -> Tensor:
        """Where a token's embedding gets a gradient, `[prompts, tokens]`: torch gives the padding token's row none."""
        padding: Any = self.call.module.padding_idx
        return self.block.tokens if padding is None else self.block.tokens & (self.call.input != padding)


@dataclass
class Collector:
    """Gathers gradients, block by block, into factors that are named after their modules.

    Attributes:
        storage: Keeps what is large.
        shared: Number of tokens that all prompts begin with.
        mean_length: Mean number of tokens of a prompt.
        head: The model's head.
        wanted: Whether the parameters of the module with a given name count.
        scattered: Linear maps whose rows are not the tokens, once each (those of one expert, or of a map that is used
            twice), by name: how much they read and give, and whether they have a bias. They need blocks of one prompt.
        factors: What has been gathered.
    """

    storage: Storage
    shared: int
    mean_length: float
    head: nn.Module
    wanted: Callable[[str], bool]
    scattered: Mapping[str, tuple[int, int, bool]]
    factors: dict[str, Factor] = field(default_factory=dict)

    def add(self, block: Block, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]]) -> None:
        """Add the gradients of one block of prompts.

        Args:
            block: The prompts.
            calls: Uses of parameters.
            gradients: For each call, the gradients of its output, one for each output row.
        """
        groups: dict[tuple[int, torch.Size, bool], list[int]] = {}
        scattered: dict[str, list[int]] = {name: [] for name in self.scattered}
        for n, call in enumerate(calls):
            if not self.wanted(call.name):
                continue
            if call.name in scattered:
                scattered[call.name].append(n)
            elif call.module is self.head:
                self._add_head(block, call, gradients[n])
            elif call.kind == "linear":
                key = (call.input.data_ptr(), call.input.shape[-1:], call.bias)
                groups.setdefault(key, []).append(n)
            elif call.kind == "routed":
                self._add_routed(block, call, gradients[n])
            elif call.kind == "free":
                self._vector(call.name).add(torch.stack(list(gradients[n])).flatten(1)[None])
            else:
                self._vector(call.name).add(parameter_gradients(call, gradients[n], len(block.prompts)))
        for (_, _, bias), members in groups.items():
            self._add_linear(block, [calls[n] for n in members], [gradients[n] for n in members], bias)
        for name, members in scattered.items():
            some, back = [calls[n] for n in members], [gradients[n] for n in members]
            self._add_scattered(block, name, some, back)

    def _vector(self, name: str) -> VectorFactor:
        factor = self.factors.setdefault(name, VectorFactor(self.storage))
        assert isinstance(factor, VectorFactor)
        return factor

    def _add_linear(
        self, block: Block, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]], bias: bool
    ) -> None:
        """Add linear maps that read the same input: their outputs stand side by side and share its products."""
        mask, rows = block.tokens, len(gradients[0])
        given = calls[0].input.reshape(*mask.shape, -1)
        widths = [call.output.shape[-1] for call in calls]
        joined = gradients[0][0].new_empty(len(mask), rows, mask.shape[1], sum(widths))
        for part, found in zip(joined.split(widths, dim=-1), gradients, strict=True):
            for row, gradient in enumerate(found):
                part[:, row] = gradient.reshape(*mask.shape, -1)
        for place, length in enumerate(block.lengths):
            joined[place, :, : mask.shape[1] - length] = 0
        name = ", ".join(call.name for call in calls)
        way = cheapest_way(rows, self.mean_length - self.shared, given.shape[-1])
        self._linear(name, bias, self.shared, way).add(
            torch.where(mask[..., None], given, 0), joined, block.lengths
        )

    def _add_scattered(
        self,
        block: Block,
        name: str,
        calls: Sequence[Call],
        gradients: Sequence[Sequence[Tensor]],
    ) -> None:
        """Add a linear map of one prompt: all rows that it reads are that prompt's, and there may be none."""
        inputs, outputs, bias = self.scattered[name]
        assert block.gradient is not None
        like, rows = block.gradient, block.gradient.shape[1]
        given = [call.input.reshape(-1, inputs) for call in calls] or [like.new_empty(0, inputs)]
        back = [torch.stack([row.reshape(-1, outputs) for row in g]) for g in gradients]
        joined = torch.cat(back or [like.new_empty(rows, 0, outputs)], dim=1)
        factor = self._linear(name, bias, 0, cheapest_way(rows, joined.shape[1], inputs))
        factor.add(torch.cat(given)[None], joined[None], [joined.shape[1]])

    def _add_head(self, block: Block, call: Call, gradients: Sequence[Tensor]) -> None:
        block.head_gradient = torch.stack(list(gradients), dim=1)
        assert block.head_input is not None
        factor = self._linear(call.name, call.bias)
        factor.add(block.head_input, block.head_gradient, block.positions)

    def _add_routed(self, block: Block, call: Call, gradients: Sequence[Tensor]) -> None:
        """Add a linear map of experts, without what they made of padding."""
        assert call.routing is not None
        experts, tokens = call.routing
        kept = block.tokens.flatten()[tokens].nonzero()[:, 0]
        places = kept if len(call.output) == len(tokens) else tokens[kept]
        factor = self.factors.setdefault(call.name, RoutedFactor(self.storage))
        assert isinstance(factor, RoutedFactor)
        factor.add(
            call.input[kept],
            torch.stack(list(gradients), dim=1),
            Slots(len(block.prompts), experts[kept], tokens[kept] // block.tokens.shape[1], places),
        )

    def _linear(self, name: str, bias: bool, shared: int = 0, way: Way = "ghost") -> LinearFactor:
        """The factor of that name, a new one for the first block."""
        new = LinearFactor(self.storage, shared=shared, bias=bias, way=way)
        factor = self.factors.setdefault(name, new)
        assert isinstance(factor, LinearFactor)
        return factor

    def add_lookups(self, lookups: Sequence[Lookup]) -> None:
        """Add all calls of embeddings: each is a linear layer that reads one-hot rows."""
        for name in dict.fromkeys(lookup.call.name for lookup in lookups):
            if not self.wanted(name):
                continue
            members = [lookup for lookup in lookups if lookup.call.name == name]
            known = torch.cat([call.input[block.tokens] for block, call, _ in members]).unique()
            for lookup in members:
                block, call, gradients = lookup
                keys = (call.input[..., None] == known).to(gradients.dtype) * lookup.trained[..., None]
                gradients = gradients * block.tokens[:, None, :, None]
                way = cheapest_way(gradients.shape[1], self.mean_length, len(known))
                self._linear(name, bias=False, way=way).add(keys, gradients, block.lengths)
