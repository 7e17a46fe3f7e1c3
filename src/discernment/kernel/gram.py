"""Gradients of all prompts, by groups of parameters, and the inner products of all their pairs."""

import itertools
import tempfile

import torch
from torch import Tensor

from discernment.kernel.parallel import in_parallel

PIECE_ROWS = 768
"""Rows of the matrices whose products are taken: large ones are quick, small ones leave out what is symmetric."""

VECTOR_ROWS = 128
"""The same where one product is all there is to a pair, and the vectors are long."""

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


class Kept:
    """Blocks in a storage; each comes back on the device that it was given on, also from a file.

    Args:
        storage: Keeps them.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._held: list[tuple[Tensor, torch.device]] = []

    def append(self, block: Tensor) -> None:
        """Keep a block, `[prompts, ...]`."""
        self._held.append((self.storage.keep(block), block.device))

    def __getitem__(self, number: int) -> Tensor:
        held, device = self._held[number]
        return held.to(device)

    def __len__(self) -> int:
        return len(self._held)

    def sizes(self) -> list[int]:
        """How many prompts each block has."""
        return [len(held) for held, _ in self._held]


class Factor:
    """The gradients of one group of parameters, from which their inner products come.

    Prompts are added in order; their pairs are gone through block by block. Small blocks wait until there are enough
    of them to make a large one.

    Args:
        storage: Keeps the blocks.

    Attributes:
        gradients: Those of each block, `[prompts, rows, ...]`.
        short: Whether the products of two blocks are many short steps, so that several pairs should go side by side.
    """

    def __init__(self, storage: Storage) -> None:
        self.gradients = Kept(storage)
        self.short = False

    def flush(self) -> None:
        """Make a block of what waits."""

    def add_gram(self, kernel: Tensor) -> None:
        """Add the inner products of all pairs to `kernel`, `[prompts, rows, prompts, rows]`, float64."""
        self.flush()
        starts = [0, *itertools.accumulate(self.sizes())]

        def add(pair: tuple[int, int]) -> None:
            one, other = pair
            found = self.products(one, other).double().to(kernel.device)
            here, there = (slice(starts[b], starts[b + 1]) for b in (one, other))
            kernel[here, :, there] += found
            if one != other:
                kernel[there, :, here] += found.permute(2, 3, 0, 1)

        pairs = itertools.combinations_with_replacement(range(len(self.gradients)), 2)
        if self.short and len(self.gradients):
            in_parallel(add, pairs, self.gradients[0].device)
        else:
            for pair in pairs:
                add(pair)

    def sizes(self) -> list[int]:
        """How many prompts each block has."""
        return self.gradients.sizes()

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks, `[prompts, rows, prompts, rows]`."""
        raise NotImplementedError


class VectorFactor(Factor):
    """Gradients that are held as they are: those of few parameters, or of parameters for which there is no rule.

    Args:
        storage: Keeps the blocks.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._waiting: list[Tensor] = []

    def add(self, gradients: Tensor) -> None:
        """Add a block, `[prompts, rows, parameters]`."""
        self._waiting.append(gradients)
        entries = sum(some.numel() for some in self._waiting)
        if entries > SLICE_ENTRIES or sum(map(len, self._waiting)) * gradients.shape[1] > VECTOR_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make a block of what waits."""
        if self._waiting:
            self.gradients.append(self._waiting[0] if len(self._waiting) == 1 else torch.cat(self._waiting))
            self._waiting.clear()

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks."""
        return products(self.gradients[one], self.gradients[other])


def products(one: Tensor, other: Tensor) -> Tensor:
    """`[n, rows, x]` and `[m, rows, x]` to `[n, rows, m, rows]`."""
    return (one.flatten(0, 1) @ other.flatten(0, 1).T).view(*one.shape[:2], *other.shape[:2])
