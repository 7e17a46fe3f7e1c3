"""States of a large batch with the memory of a small one: gradient caching (Gao et al. 2021, arXiv 2101.06983).

The contrast sees all prompts of a batch at once, but it sees one state of each. So the states are computed some rows at a
time without keeping what the way back needs; on the way back from the loss the rows are run again, the same few at a time.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from discernment.models.batch import length_sorted_batches
from discernment.models.cut import CutModel

Rows = dict[str, Tensor]
"""The columns of a batch that a model reads, each `[rows, length, ...]`."""


def in_micro_batches(cut: CutModel, batch: Rows, size: int, view: Callable[[Rows], Tensor]) -> Tensor:
    """Look at a batch, at most `size` rows at a time; gradients are those of looking at it at once.

    Rows of like length come together, cut to the longest of them. When rows are run again, dropout and the precision are
    those of the first time; only, the rows of a batch draw their dropout in another order than at once.

    Args:
        cut: The model that `view` runs.
        batch: `input_ids` and `attention_mask`, `[batch, length]`, padded on the right, and columns beside them.
        size: Rows at a time.
        view: Runs some rows, and gives something of one size for each.

    Returns:
        What `view` gives for all rows, in their order.
    """
    lengths = [int(length) for length in batch["attention_mask"].sum(1)]
    parts = list(length_sorted_batches(lengths, size))
    while True:
        ways = cut.ways
        seen = [
            checkpoint(
                view,
                {name: column[rows, : lengths[rows[0]]] for name, column in batch.items()},
                use_reentrant=False,
            )
            for rows in parts
        ]
        if cut.ways == ways:
            break
        # A way was chosen, or found wrong: rows must be run again in the way in which they were run at first.
    order = [row for rows in parts for row in rows]
    found: Tensor = torch.cat(seen)[torch.tensor(order).argsort().to(seen[0].device)]
    return found


def padded_to(length: int, states: Tensor) -> Tensor:
    """States `[rows, length', hidden]` with zeros up to a length, or cut to it."""
    return nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
