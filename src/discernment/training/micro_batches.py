"""Parts of a batch that are run one after the other: for rows of unlike length, or for one that memory does not hold.

A prompt that is much longer than the others would have all of them padded to its length.

States of a large batch are had with the memory of a small one by gradient caching (Gao et al. 2021, arXiv 2101.06983). The
contrast sees all prompts of a batch at once, but it sees one state of each. So the states are computed some rows at a
time without keeping what the way back needs; on the way back from the loss the rows are run again, the same few at a time.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from discernment.models.batch import length_sorted_batches
from discernment.models.cut import CutModel

Rows = dict[str, Tensor]
"""The columns of a batch that a model reads, each `[rows, length, ...]`."""
GROUPS = 4
"""Into how many groups of like length a batch is parted."""
WORTH_PARTING = 1.5
"""How many times the tokens of the parts, padded, those of the whole batch have to be."""


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
    lengths = _lengths(batch)
    parts = list(length_sorted_batches(lengths, size))
    while True:
        ways = cut.ways
        seen = [checkpoint(view, _part(batch, rows, lengths), use_reentrant=False) for rows in parts]
        if cut.ways == ways:
            break
        # A way was chosen, or found wrong: rows must be run again in the way in which they were run at first.
    return _in_order(seen, parts)


def in_length_groups(batch: Rows, view: Callable[[Rows], Tensor]) -> Tensor:
    """Look at a batch in a few groups of rows of like length, where that saves a third of it or more; else at once.

    Args:
        batch: As for `in_micro_batches`.
        view: As there.

    Returns:
        What `view` gives for all rows, in their order.
    """
    lengths = _lengths(batch)
    parts = list(length_sorted_batches(lengths, math.ceil(len(lengths) / GROUPS)))
    parted = sum(len(rows) * lengths[rows[0]] for rows in parts)
    if len(lengths) * max(lengths) < WORTH_PARTING * parted:
        return view(batch)
    return _in_order([view(_part(batch, rows, lengths)) for rows in parts], parts)


def _lengths(batch: Rows) -> list[int]:
    return [int(length) for length in batch["attention_mask"].sum(1)]


def _part(batch: Rows, rows: list[int], lengths: Sequence[int]) -> Rows:
    """Some rows of a batch, the longest first, cut to its length."""
    return {name: column[rows, : lengths[rows[0]]] for name, column in batch.items()}


def _in_order(seen: Sequence[Tensor], parts: Sequence[list[int]]) -> Tensor:
    """What was seen of all rows, in their order in the batch."""
    order = [row for rows in parts for row in rows]
    found: Tensor = torch.cat(list(seen))[torch.tensor(order).argsort().to(seen[0].device)]
    return found


def padded_to(length: int, states: Tensor) -> Tensor:
    """States `[rows, length', hidden]` with zeros up to a length, or cut to it."""
    return nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))
