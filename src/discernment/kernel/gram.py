"""Inner products of gradients that are never formed: the ghost identity, and what is cheaper where it is not.

The gradient of a linear layer y = x W for one prompt is a sum over its tokens, sum_t a_t d_t^T, with a_t the input and
d_t the gradient of the output. So two of them have the inner product sum_{t,s} (a_t . a'_s)(d_t . d'_s): T^2
numbers instead of the size of W. Prompts in one chat format begin alike, and so do their inputs a_t. On an
orthonormal basis of the inputs of that shared beginning, its part of the gradient is held as coordinates, whose inner
products are one matrix product; only the rest of the tokens, made orthogonal to the basis, need the ghost identity.
With a basis of the whole input space this is the gradient itself, which is the cheapest way for long prompts.
"""

import itertools
import tempfile
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PIECE_ROWS = 768
"""Rows of the matrices whose products are taken: large ones are quick, small ones leave out what is symmetric."""

SLICE_ENTRIES = 1 << 27
"""Entries of the gradients that are formed at once in the materialised way: 512 MiB in float32."""


class Storage:
    """Tensors in memory until a budget is used up, then in a temporary file.

    Args:
        budget: Bytes of memory.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.used = 0
        self._files: list[tempfile._TemporaryFileWrapper[bytes]] = []

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it in a file."""
        size = tensor.numel() * tensor.element_size()
        if self.used + size <= self.budget:
            self.used += size
            return tensor
        file = tempfile.NamedTemporaryFile(prefix="discernment-")  # noqa: SIM115 - lives as long as the tensor
        self._files.append(file)
        held = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        held = held.view(tensor.shape)
        held.copy_(tensor)
        return held

    def clear(self) -> None:
        """Forget everything; nothing that was kept may be used any more."""
        self.used = 0
        for file in self._files:
            file.close()
        self._files.clear()


class Factor:
    """The gradients of one group of parameters, from which their inner products come.

    Prompts are added in order; their pairs are gone through block by block. Small blocks wait until there are enough
    of them to make a large one.

    Attributes:
        gradients: Those of each block, `[prompts, rows, ...]`.
    """

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []

    def flush(self) -> None:
        """Make a block of what waits."""

    def add_gram(self, kernel: Tensor) -> None:
        """Add the inner products of all pairs to `kernel`, `[prompts, rows, prompts, rows]`, float64."""
        self.flush()
        starts = [0, *itertools.accumulate(self.sizes())]
        for one, other in itertools.combinations_with_replacement(range(len(self.gradients)), 2):
            found = self.products(one, other).double().to(kernel.device)
            here, there = (slice(starts[b], starts[b + 1]) for b in (one, other))
            kernel[here, :, there] += found
            if one != other:
                kernel[there, :, here] += found.permute(2, 3, 0, 1)

    def sizes(self) -> list[int]:
        """How many prompts each block has."""
        return [len(gradients) for gradients in self.gradients]

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks, `[prompts, rows, prompts, rows]`."""
        raise NotImplementedError


class VectorFactor(Factor):
    """Gradients that are held as they are: those of few parameters, or of parameters for which there is no rule.

    Args:
        storage: Keeps the blocks.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self._waiting: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Add a block, `[prompts, rows, parameters]`."""
        self._waiting.append(gradients)
        entries = sum(some.numel() for some in self._waiting)
        if entries > SLICE_ENTRIES or sum(map(len, self._waiting)) * gradients.shape[1] > PIECE_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make a block of what waits."""
        if self._waiting:
            self.gradients.append(self.storage.keep(torch.cat(self._waiting)))
            self._waiting.clear()

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks."""
        return _products(self.gradients[one], self.gradients[other])


def cheaper_way(own_tokens: float, shared_tokens: int, inputs: int) -> Literal["ghost", "materialised"]:
    """Whether T^2 numbers a pair for the tokens that differ, and a basis for the others, beat the whole gradient.

    Args:
        own_tokens: Mean number of tokens behind the shared beginning.
        shared_tokens: Number of tokens of the shared beginning.
        inputs: Width of the layer's input.
    """
    return "ghost" if own_tokens**2 + shared_tokens < inputs else "materialised"


class LinearFactor(Factor):
    """The weight (and bias) gradients of linear layers that read the same input.

    Args:
        storage: Keeps the blocks.
        shared: Number of tokens that all prompts begin with.
        bias: Whether the layers have biases: they read a constant 1.
        way: See `cheaper_way`.
    """

    def __init__(
        self, storage: Storage, *, shared: int, bias: bool, way: Literal["ghost", "materialised"]
    ) -> None:
        super().__init__()
        self.storage = storage
        self.shared = shared
        self.bias = bias
        self.way = way
        self.basis: Tensor | None = None
        self.inputs: list[Tensor] = []
        self.coordinates: list[Tensor] = []
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._lengths: list[int] = []

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
        if len(self._lengths) >= self._size(gradients.shape[1], max(self._lengths)):
            self.flush()

    def _size(self, rows: int, tokens: int) -> int:
        """Prompts a block."""
        own = tokens - self.shared if self.way == "ghost" else 1
        return max(1, PIECE_ROWS // (rows * max(1, own)))

    def flush(self) -> None:
        """Make blocks of what waits."""
        if not self._waiting:
            return
        longest = max(inputs.shape[1] for inputs, _ in self._waiting)
        inputs = torch.cat([_pad(some, longest) for some, _ in self._waiting])
        gradients, lengths = torch.cat([_pad(some, longest) for _, some in self._waiting]), self._lengths
        self._waiting, self._lengths = [], []
        size = self._size(gradients.shape[1], longest)
        for start in range(0, len(lengths), size):
            here = slice(start, start + size)
            some = inputs[here], gradients[here]
            if self.way == "ghost" and self.shared:
                some = self._split(*some, lengths[here])
            self.inputs.append(self.storage.keep(some[0].contiguous()))
            self.gradients.append(self.storage.keep(some[1].contiguous()))

    def _split(self, inputs: Tensor, gradients: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Move what lies in the span of the shared beginning's inputs to the coordinates; give back the rest."""
        tokens = inputs.shape[1]
        if self.basis is None:
            start = tokens - lengths[0]
            self.basis = torch.linalg.qr(inputs[0, start : start + self.shared].T).Q
        within = inputs @ self.basis
        coordinates = within.transpose(1, 2)[:, None] @ gradients
        self.coordinates.append(self.storage.keep(coordinates.flatten(2)))
        own = torch.tensor([n - self.shared for n in lengths], device=inputs.device)
        longest = int(own.max())
        rest = (inputs - within @ self.basis.T)[:, tokens - longest :]
        is_own = torch.arange(longest, device=inputs.device) >= longest - own[:, None]
        return rest * is_own[..., None], gradients[:, :, tokens - longest :]

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks."""
        if self.way == "materialised":
            return self._materialised(one, other)
        found = self._ghost(one, other)
        if self.coordinates:
            found = found + _products(self.coordinates[one], self.coordinates[other])
        return found

    def _ghost(self, one: int, other: int) -> Tensor:
        here, there = self.gradients[one], self.gradients[other]
        (n, rows, tokens, width), (m, others, more, _) = here.shape, there.shape
        outputs = here.reshape(-1, width) @ there.reshape(-1, width).T
        inputs = self.inputs[one].flatten(0, 1) @ self.inputs[other].flatten(0, 1).T
        outputs = outputs.view(n, rows, tokens, m, others, more)
        inputs = inputs.view(n, 1, tokens, m, 1, more)
        return (outputs * inputs).sum((2, 5))

    def _materialised(self, one: int, other: int) -> Tensor:
        (n, rows, _, width), (m, others) = self.gradients[one].shape, self.gradients[other].shape[:2]
        inputs = self.inputs[one].shape[-1]
        step = max(1, SLICE_ENTRIES // (max(n * rows, m * others) * inputs))
        found = self.gradients[one].new_zeros(n, rows, m, others)
        for start in range(0, width, step):
            here = self._slice(one, start, step)
            found += _products(here, here if one == other else self._slice(other, start, step))
        return found

    def _slice(self, block: int, start: int, step: int) -> Tensor:
        """The gradient of some outputs, `[prompts, rows, outputs x inputs]`."""
        some = self.gradients[block][..., start : start + step]
        return (some.transpose(2, 3) @ self.inputs[block][:, None]).flatten(2)


def _pad(values: Tensor, tokens: int) -> Tensor:
    """Zeros on the left, up to a number of tokens; `values` are `[..., tokens, width]`."""
    return torch.nn.functional.pad(values, (0, 0, tokens - values.shape[-2], 0))


def _products(one: Tensor, other: Tensor) -> Tensor:
    """`[n, rows, x]` and `[m, rows, x]` to `[n, rows, m, rows]`."""
    return (one.flatten(0, 1) @ other.flatten(0, 1).T).view(*one.shape[:2], *other.shape[:2])
