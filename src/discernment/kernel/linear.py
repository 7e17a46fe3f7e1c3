"""The inner products of linear layers' gradients, in whichever order of their sums is the cheapest.

The gradient of a linear layer y = x W for one prompt is a sum over its tokens, sum_t a_t d_t^T, with a_t the input and
d_t the gradient of the output. The inputs do not depend on the output row, the d_t do. So rows r and q of two prompts
have the inner product sum_{t,s} (a_t . a'_s)(d_rt . d'_qs), for which there are three ways. With T tokens, k rows, I
inputs and O outputs a pair of prompts costs

- `ghost`: k^2 T^2 O. The products of all d, then their sum.
- `moved`: k T (T + k) O. First d'' = sum_s (a_t . a'_s) d'_s moves the gradients of the second prompt to the tokens of
  the first, once for all rows there; then those at the same token are multiplied.
- `materialised`: k^2 I O. The gradient itself.

Prompts in one chat format begin alike, and so do their inputs a_t. On an orthonormal basis of the inputs of that shared
beginning, its part of the gradient is held as coordinates, whose inner products are one matrix product, and only the
rest of the tokens, made orthogonal to the basis, need the first two ways. The third needs no such thing.
"""

import math
import threading
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from discernment.kernel.gram import PIECE_ROWS, SLICE_ENTRIES, Factor, Kept, Storage, VectorFactor, products

Way = Literal["ghost", "moved", "materialised"]

CACHE_ENTRIES = 1 << 18
"""Entries of moved gradients at once on the CPU: what is written is read again before it leaves the core's cache."""

MOVED_PROMPTS = 8
"""Prompts a block in the `moved` way: few enough that there are pairs of blocks for all threads."""

CHUNK_OUTPUTS = 600
"""Outputs at once on the CPU in the `moved` way, about."""

MOVED_COST = 2.0
"""How much longer a multiplication takes in the thin matrices of the `moved` way than in large square ones."""


def cheapest_way(rows: int, own_tokens: float, inputs: int) -> Way:
    """The way that takes the least time for a pair of prompts.

    Args:
        rows: Output rows of a prompt.
        own_tokens: Mean number of tokens behind the shared beginning.
        inputs: Width of the layer's input.
    """
    costs: dict[Way, float] = {
        "ghost": rows**2 * own_tokens**2,
        "moved": MOVED_COST * rows * own_tokens * (own_tokens + rows),
        "materialised": rows**2 * inputs,
    }
    return min(costs, key=lambda way: costs[way])


class LinearFactor(Factor):
    """The weight (and bias) gradients of linear layers that read the same input.

    Args:
        storage: Keeps the blocks.
        shared: Number of tokens that all prompts begin with.
        bias: Whether the layers have biases: they read a constant 1.
        way: See `cheapest_way`.
    """

    def __init__(self, storage: Storage, *, shared: int, bias: bool, way: Way) -> None:
        super().__init__(storage)
        self.shared = shared if way != "materialised" else 0
        self.bias = bias
        self.way = way
        self.short = way == "moved"
        self.basis: Tensor | None = None
        self.inputs = Kept(storage)
        self.coordinates = VectorFactor(storage)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._lengths: list[int] = []
        self._scratch = threading.local()

    def add(self, inputs: Tensor, gradients: Tensor, lengths: Sequence[int]) -> None:
        """Add a block.

        Args:
            inputs: a, `[prompts, tokens, inputs]`, padded on the left; padding must be finite.
            gradients: d, `[prompts, rows, tokens, outputs]`, zero at padding.
            lengths: Number of tokens of each prompt.
        """
        if self.bias:
            inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1)
        self._waiting.append((inputs, gradients))
        self._lengths.extend(lengths)
        if len(self._lengths) >= self._size(gradients, max(self._lengths)):
            self.flush()

    def _size(self, gradients: Tensor, tokens: int) -> int:
        """Prompts a block."""
        rows, own = gradients.shape[1], max(1, tokens - self.shared)
        if self.way == "ghost":
            return max(1, PIECE_ROWS // (rows * own))
        if self.way == "materialised":
            return max(1, PIECE_ROWS // rows)
        return MOVED_PROMPTS

    @staticmethod
    def _chunk(gradients: Tensor) -> tuple[int, int]:
        """How many chunks of outputs there are in the `moved` way, and how many outputs each has."""
        width = gradients.shape[-1]
        chunks = math.ceil(width / CHUNK_OUTPUTS) if gradients.device.type == "cpu" else 1
        return chunks, math.ceil(width / chunks)

    def flush(self) -> None:
        """Make blocks of what waits."""
        if not self._waiting:
            return
        longest = max(inputs.shape[1] for inputs, _ in self._waiting)
        inputs = _joined([some for some, _ in self._waiting], longest)
        gradients, lengths = _joined([some for _, some in self._waiting], longest), self._lengths
        self._waiting, self._lengths = [], []
        if self.shared:
            inputs = self._split(inputs, gradients, lengths)
        size = self._size(gradients, longest)
        for start in range(0, len(lengths), size):
            here = slice(start, start + size)
            own = max(1, max(lengths[here]) - self.shared)
            back = gradients[here, :, longest - own :]
            self.inputs.append(inputs[here, longest - own :].contiguous())
            self.gradients.append(self._chunked(back) if self.way == "moved" else back.contiguous())

    def _split(self, inputs: Tensor, gradients: Tensor, lengths: Sequence[int]) -> Tensor:
        """Move what lies in the span of the shared beginning's inputs to the coordinates; the inputs' rest."""
        tokens = inputs.shape[1]
        if self.basis is None:
            start = tokens - lengths[0]
            self.basis = torch.linalg.qr(inputs[0, start : start + self.shared].T).Q
        within = inputs @ self.basis
        self.coordinates.add((within.transpose(1, 2)[:, None] @ gradients).flatten(2))
        own = torch.tensor([n - self.shared for n in lengths], device=inputs.device)
        is_own = torch.arange(tokens, device=inputs.device) >= tokens - own[:, None]
        return (inputs - within @ self.basis.T) * is_own[..., None]

    def _chunked(self, gradients: Tensor) -> Tensor:
        """`[prompts, rows, tokens, outputs]` to `[chunks, prompts, rows, tokens, outputs of a chunk]`."""
        chunks, width = self._chunk(gradients)
        if chunks * width > gradients.shape[-1]:
            gradients = torch.nn.functional.pad(gradients, (0, chunks * width - gradients.shape[-1]))
        found: Tensor = gradients.unflatten(-1, (chunks, width))
        return found.movedim(-2, 0).contiguous()

    # ------------------------------------------------------------------ inner products

    def add_gram(self, kernel: Tensor) -> None:
        """Add the inner products of all pairs to `kernel`, `[prompts, rows, prompts, rows]`, float64."""
        super().add_gram(kernel)
        self.coordinates.add_gram(kernel)

    def sizes(self) -> list[int]:
        """How many prompts each block has."""
        return self.inputs.sizes()

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks, without those of the coordinates."""
        if self.way == "materialised":
            return self._materialised(one, other)
        return self._ghost(one, other) if self.way == "ghost" else self._moved(one, other)

    def _met(self, one: int, other: int) -> Tensor:
        """Inner products a . a' of all tokens, `[prompts, tokens, prompts, tokens]`."""
        here, there = self.inputs[one], self.inputs[other]
        met = here.flatten(0, 1) @ there.flatten(0, 1).T
        return met.view((*here.shape[:2], *there.shape[:2]))

    def _ghost(self, one: int, other: int) -> Tensor:
        here, there = self.gradients[one], self.gradients[other]
        (n, rows, tokens, width), (m, others, more, _) = here.shape, there.shape
        outputs = here.reshape(-1, width) @ there.reshape(-1, width).T
        outputs = outputs.view(n, rows, tokens, m, others, more)
        return (outputs * self._met(one, other)[:, None, :, :, None]).sum((2, 5))

    def _moved(self, one: int, other: int) -> Tensor:
        met, there = self._met(one, other), self.gradients[other]
        (_, m, rows, more, width), (n, tokens) = there.shape, met.shape[:2]
        weights = met.permute(0, 2, 1, 3)[:, :, None].expand(-1, -1, rows, -1, -1)
        weights = weights.reshape(n, m * rows, tokens, more)
        found = there.new_empty(n, rows, m * rows)
        step = self._side_by_side(rows * tokens * width, there.device)
        for start in range(0, m, step):
            some = slice(start * rows, min(start + step, m) * rows)
            places = range(min(start + step, m) if one == other else n)  # the rest is symmetric
            sums = there.new_zeros(n, tokens, rows, some.stop - some.start)
            moved = self._room(there, (some.stop - some.start) * tokens * width).view(-1, tokens, width)
            for mine, theirs in zip(self.gradients[one], there.flatten(1, 2)[:, some], strict=True):
                for place in places:
                    torch.bmm(weights[place, some], theirs, out=moved)
                    sums[place].baddbmm_(mine[place].transpose(0, 1), moved.permute(1, 2, 0))
            found[..., some] = sums.sum(1)
        found = found.view(n, rows, m, rows)
        if one == other:
            below = torch.ones(n, n, dtype=torch.bool, device=found.device).tril()[:, None, :, None]
            found = torch.where(below, found.permute(2, 3, 0, 1), found)
        return found

    @staticmethod
    def _side_by_side(entries: int, device: torch.device) -> int:
        """How many prompts' gradients are moved at once, with so many entries each."""
        return max(1, round((CACHE_ENTRIES if device.type == "cpu" else SLICE_ENTRIES) / entries))

    def _room(self, like: Tensor, entries: int) -> Tensor:
        """Room for what is moved, the same for all pairs that a thread works on: fresh memory costs page faults."""
        held: Tensor | None = getattr(self._scratch, "held", None)
        if held is None or len(held) < entries:
            held = self._scratch.held = like.new_empty(entries)
        return held[:entries]

    def _materialised(self, one: int, other: int) -> Tensor:
        (n, rows, _, width), (m, others) = self.gradients[one].shape, self.gradients[other].shape[:2]
        inputs = self.inputs[one].shape[-1]
        step = max(1, SLICE_ENTRIES // (max(n * rows, m * others) * inputs))
        found = self.gradients[one].new_zeros(n, rows, m, others)
        for start in range(0, width, step):
            here = self._slice(one, start, step)
            found += products(here, here if one == other else self._slice(other, start, step))
        return found

    def _slice(self, block: int, start: int, step: int) -> Tensor:
        """The gradient of some outputs, `[prompts, rows, outputs x inputs]`."""
        some = self.gradients[block][..., start : start + step]
        return (some.transpose(2, 3) @ self.inputs[block][:, None]).flatten(2)


def _joined(blocks: Sequence[Tensor], tokens: int) -> Tensor:
    """Blocks `[..., tokens, width]` one behind the other, with zeros on the left up to a number of tokens."""
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([torch.nn.functional.pad(b, (0, 0, tokens - b.shape[-2], 0)) for b in blocks])
