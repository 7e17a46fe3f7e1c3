"""Sequences of different length as one rectangular batch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Padded token ids.

    Attributes:
        input_ids: Token ids, `[batch, length]`.
        attention_mask: 1 for tokens and 0 for padding, `[batch, length]`.
    """

    input_ids: Tensor
    attention_mask: Tensor

    @property
    def position_ids(self) -> Tensor:
        """Positions that do not count padding, `[batch, length]`."""
        return (self.attention_mask.cumsum(-1) - 1).clamp(min=0)


def pad(
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    side: Literal["left", "right"],
    device: torch.device | str = "cpu",
) -> Batch:
    """Pad token sequences to the longest of them."""
    tensors = [torch.tensor(s, dtype=torch.long) for s in sequences]
    masks = [torch.ones_like(t) for t in tensors]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side=side)
    mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True, padding_value=0, padding_side=side)
    return Batch(ids.to(device), mask.to(device))


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Index lists of at most `batch_size`, longest first: little padding, and memory trouble shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def one_length(lengths: Sequence[Any]) -> list[list[int]]:
    """Index lists of what has the same length, or lengths, shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [list(same) for _, same in itertools.groupby(order, key=lengths.__getitem__)]


def common_prefix(sequences: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all sequences begin with."""
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    return [column[0] for column in same]
