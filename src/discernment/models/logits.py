"""Logits at the end of rows of tokens, in one batch where the model allows that, else in batches of one length."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from discernment.models.batch import one_length, pad
from discernment.models.self_check import ONE_LENGTH, Probes, Rows, Way, exact_way

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def last_logits(
    model: PreTrainedModel,
    rows: Rows,
    last: int,
    pad_id: int,
    within: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> Tensor:
    """Logits at the last positions of each row, `[rows, last, vocabulary]`.

    Args:
        model: The model.
        rows: Token ids.
        last: How many positions; where a row is shorter, what comes first has no meaning.
        pad_id: The padding token.
        within: Makes the `with` block in which rows of given numbers are run.

    Raises:
        ModelError: If the model cannot be run on several rows at once; see `exact_way`.
    """
    if takes_padding(model, pad_id):
        with within(range(len(rows))):
            return padded_logits(model, rows, last, pad_id)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for numbers in one_length([len(row) for row in rows]):
        with within(numbers):
            logits = unpadded_logits(model, [rows[n] for n in numbers], last)
        for n, row in zip(numbers, logits, strict=True):
            found[n] = row
    joined: Tensor = pad_sequence(found, batch_first=True, padding_side="left")
    return torch.nn.functional.pad(joined, (0, 0, last - joined.shape[1], 0))


def takes_padding(model: PreTrainedModel, pad_id: int) -> bool:
    """Whether rows of several lengths, padded on the left, give the logits that they give by themselves."""

    def alone(probes: Probes) -> list[Tensor]:
        return [unpadded_logits(model, [row], 2)[0] for row in probes.rows]

    def padded(probes: Probes) -> list[Tensor]:
        return list(padded_logits(model, probes.rows, 2, pad_id))

    def unpadded(probes: Probes) -> list[Tensor]:
        short, *long = probes.rows
        return [*unpadded_logits(model, [short], 2), *unpadded_logits(model, long, 2)]

    ways = (Way("padded batches", padded), Way(ONE_LENGTH, unpadded))
    return exact_way(model, model.config, "logits", alone, ways) == 0


def padded_logits(model: PreTrainedModel, rows: Rows, last: int, pad_id: int) -> Tensor:
    """From one batch, padded on the left."""
    batch = pad(rows, pad_id, "left", model.device)
    run: Any = model
    logits: Tensor = run(
        **batch._asdict(), position_ids=batch.position_ids, logits_to_keep=last, use_cache=False
    ).logits
    return logits[:, -last:]


def unpadded_logits(model: PreTrainedModel, rows: Rows, last: int) -> Tensor:
    """Of rows of one length, with nothing said but their tokens."""
    run: Any = model
    keep = {"logits_to_keep": last} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits: Tensor = run(input_ids=torch.tensor(rows, device=model.device), use_cache=False, **keep).logits
    return logits[:, -last:]


def why_not_finite(model: PreTrainedModel) -> str:
    """What to do about a model whose numbers are not finite, as the end of a sentence."""
    if model.dtype.itemsize < 4:
        return "load it with `dtype: float32`, or it has diverged in training"
    return "its weights are damaged, or it has diverged in training: take an earlier one"
