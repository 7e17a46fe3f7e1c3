"""Inner products of the gradients of experts: two prompts have in common what they send to the same expert."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from discernment.kernel.gram import PIECE_ROWS, Factor, Kept, Storage


class Slots(NamedTuple):
    """Which expert reads what, for one block of prompts. Slots are sorted by expert.

    Attributes:
        prompts: How many prompts there are.
        experts: The expert of each slot, `[slots]`.
        owners: The prompt of each slot, `[slots]`.
        places: The row of each slot among the gradients, `[slots]`.
    """

    prompts: int
    experts: Tensor
    owners: Tensor
    places: Tensor

    def by_expert(self) -> dict[int, slice]:
        """The slots of each expert that has any."""
        experts, counts = self.experts.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        return {
            expert: slice(end - count, end)
            for expert, count, end in zip(experts.tolist(), counts.tolist(), ends, strict=True)
        }


class RoutedFactor(Factor):
    """The gradients of one linear map of all experts, by the ghost identity within each expert.

    The gradient of an expert's weight for one prompt is sum_t a_t d_t^T over the tokens that it was sent. With k of E
    experts a token, a pair of prompts costs k^2 / E of what the same map would cost if it read each token.

    Args:
        storage: Keeps the blocks.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.inputs = Kept(storage)
        self.slots: list[Slots] = []
        self._waiting: list[tuple[Tensor, Tensor, Slots]] = []

    def add(self, inputs: Tensor, gradients: Tensor, slots: Slots) -> None:
        """Add a block.

        Args:
            inputs: a, `[slots, inputs]`.
            gradients: d, `[places, rows, outputs]`; slots may share a place.
            slots: Which expert reads what.
        """
        self._waiting.append((inputs, gradients, slots))
        an_expert = sum(len(s.experts) for _, _, s in self._waiting) / len(slots.experts.unique())
        if an_expert * gradients.shape[1] >= PIECE_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make a block of what waits."""
        if not self._waiting:
            return
        inputs, gradients, slots = zip(*self._waiting, strict=True)
        self._waiting.clear()
        starts = [0, *itertools.accumulate(s.prompts for s in slots)]
        rows = [0, *itertools.accumulate(map(len, gradients))]
        experts = torch.cat([s.experts for s in slots])
        owners = torch.cat([s.owners + start for s, start in zip(slots, starts, strict=False)])
        places = torch.cat([s.places + row for s, row in zip(slots, rows, strict=False)])
        order = experts.argsort(stable=True)
        self.inputs.append(torch.cat(inputs)[order])
        self.gradients.append(torch.cat(gradients))
        self.slots.append(Slots(starts[-1], experts[order], owners[order], places[order]))

    def sizes(self) -> list[int]:
        """How many prompts each block has."""
        return [slots.prompts for slots in self.slots]

    def products(self, one: int, other: int) -> Tensor:
        """Inner products between two blocks."""
        here, there = self.slots[one], self.slots[other]
        rows = self.gradients[one].shape[1]
        found = self.gradients[one].new_zeros(here.prompts, rows, there.prompts, rows)
        step = max(1, PIECE_ROWS // rows)
        of_one, of_other = here.by_expert(), there.by_expert()
        for expert in of_one.keys() & of_other.keys():
            mine, theirs = of_one[expert], of_other[expert]
            for start in range(mine.start, mine.stop, step):
                left = slice(start, min(start + step, mine.stop))
                for begin in range(theirs.start, theirs.stop, step):
                    right = slice(begin, min(begin + step, theirs.stop))
                    piece = self._piece(one, left, other, right)
                    some = found.new_zeros(here.prompts, *piece.shape[1:])
                    some.index_add_(0, here.owners[left], piece)
                    found.index_add_(2, there.owners[right], some)
        return found

    def _piece(self, one: int, left: slice, other: int, right: slice) -> Tensor:
        """(a . a')(d . d') of slots of one expert, `[slots, rows, slots, rows]`."""
        here = self.gradients[one][self.slots[one].places[left]]
        there = self.gradients[other][self.slots[other].places[right]]
        outputs = here.flatten(0, 1) @ there.flatten(0, 1).T
        inputs = self.inputs[one][left] @ self.inputs[other][right].T
        return outputs.view(*here.shape[:2], *there.shape[:2]) * inputs[:, None, :, None]
