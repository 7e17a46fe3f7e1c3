"""Bringing the gradients of one part of a model together, for all prompts, by groups of parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.kernel.capture import Call, is_linear, parameter_gradients
from discernment.kernel.gram import Factor, LinearFactor, Storage, VectorFactor, cheaper_way
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
        factors: What has been gathered.
    """

    storage: Storage
    shared: int
    mean_length: float
    head: nn.Module
    wanted: Callable[[str], bool]
    factors: dict[str, Factor] = field(default_factory=dict)

    def add(self, block: Block, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]]) -> None:
        """Add the gradients of one block of prompts.

        Args:
            block: The prompts.
            calls: Calls of modules.
            gradients: For each call, the gradients of its output, one `[prompts, ...]` for each output row.

        Raises:
            ModelError: If a module does something that the kernel cannot cover.
        """
        names = [call.name for call in calls]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelError(f"{twice} is called twice, which the kernel cannot cover.")
        groups: dict[tuple[int, bool], list[int]] = {}
        for n, call in enumerate(calls):
            if not self.wanted(call.name):
                continue
            if is_linear(call.module) and call.module is not self.head:
                key = (call.input.data_ptr(), call.module.bias is not None)
                groups.setdefault(key, []).append(n)
            elif call.module is self.head:
                self._add_head(block, call, gradients[n])
            else:
                factor = self.factors.setdefault(call.name, VectorFactor())
                assert isinstance(factor, VectorFactor)
                factor.add(parameter_gradients(call, gradients[n]))
        for (_, bias), members in groups.items():
            self._add_linear(block, [calls[n] for n in members], [gradients[n] for n in members], bias)

    def _add_linear(
        self, block: Block, calls: Sequence[Call], gradients: Sequence[Sequence[Tensor]], bias: bool
    ) -> None:
        given = calls[0].input
        if given.shape[:2] != block.batch.input_ids.shape or given.ndim != 3:
            raise ModelError(
                f"The kernel cannot cover {calls[0].name}, whose input has the shape {tuple(given.shape)} instead of "
                "[prompts, tokens, inputs]."
            )
        # Layers that read the same input share its products: their outputs stand side by side.
        joined = torch.cat([torch.stack(list(g), dim=1) for g in gradients], dim=-1)
        mask = block.tokens
        name = ", ".join(call.name for call in calls)
        way = cheaper_way(self.mean_length - self.shared, self.shared, given.shape[-1])
        self._linear(name, bias, self.shared, way).add(
            torch.where(mask[..., None], given, 0),
            torch.where(mask[:, None, :, None], joined, 0),
            block.lengths,
        )

    def _add_head(self, block: Block, call: Call, gradients: Sequence[Tensor]) -> None:
        block.head_gradient = torch.stack(list(gradients), dim=1)
        assert block.head_input is not None
        factor = self._linear(call.name, call.module.bias is not None)
        factor.add(block.head_input, block.head_gradient, block.positions)

    def _linear(
        self, name: str, bias: bool, shared: int = 0, way: Literal["ghost", "materialised"] = "ghost"
    ) -> LinearFactor:
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
                self._linear(name, bias=False).add(keys, gradients, block.lengths)
