"""What the held layers put out for every row, computed once: training then runs the layers behind them only."""

import logging
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from discernment.disk import check_room, room
from discernment.models.batch import length_sorted_batches, pad
from discernment.models.cut import CutModel

logger = logging.getLogger(__name__)

LIMIT = 1 << 30
"""Bytes of states from which they lie in a file instead of in memory."""


class HeldStates:
    """States of rows, `[tokens, hidden]` each, in memory or in a file that is gone with them.

    Args:
        folder: Where the file lies.
        in_file: Whether there is one.
    """

    def __init__(self, folder: Path, *, in_file: bool) -> None:
        self._rows: dict[int, Tensor] = {}
        self._places: dict[int, tuple[int, torch.Size, torch.dtype]] = {}
        self._folder = folder
        # It has no name: nothing is left of it, however the stage ends.
        self._file: IO[bytes] | None = TemporaryFile(dir=folder) if in_file else None  # noqa: SIM115
        self._mapped: mmap.mmap | None = None

    def put(self, row: int, states: Tensor) -> None:
        """Keep the states of a row.

        Raises:
            DiskError: If there is no room for them.
        """
        states = states.cpu().contiguous()
        if self._file is None:
            self._rows[row] = states.clone()  # not a view of its whole batch
            return
        with room(self._folder, states.nbytes):
            self._places[row] = (self._file.tell(), states.shape, states.dtype)
            self._file.write(states.view(torch.uint8).numpy().data)
            self._file.flush()

    def __getitem__(self, row: int) -> Tensor:
        if self._file is None:
            return self._rows[row]
        if self._mapped is None:
            self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        place, shape, dtype = self._places[row]
        flat = torch.frombuffer(self._mapped, dtype=dtype, count=shape.numel(), offset=place)
        return flat.view(shape)


def held_states(
    model: nn.Module,
    layers: str,
    held: int,
    rows: Mapping[int, Sequence[int]],
    *,
    batch_size: int,
    pad_id: int,
    folder: Path,
    mixed: bool,
) -> HeldStates:
    """Run the first layers of a model on every row, once.

    Args:
        model: The model, perhaps without its last layers; it is left as it was.
        layers: Name of the list of its layers.
        held: How many of them are run.
        rows: Token ids, each under its number.
        batch_size: Rows a forward pass.
        pad_id: The padding token.
        folder: Where the states lie that would take much memory.
        mixed: Compute in bfloat16, as the training will.

    Returns:
        What the last of these layers puts out, under the rows' numbers.

    Raises:
        DiskError: If there is no room for them.
    """
    device = next(model.parameters()).device
    training = [(module, module.training) for module in model.modules()]
    store: HeldStates | None = None
    with (
        CutModel(model, held, path=layers) as cut,
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=mixed),
    ):
        cut.eval()
        names, lengths = list(rows), [len(row) for row in rows.values()]
        for places in length_sorted_batches(lengths, batch_size):
            numbers = [names[place] for place in places]
            batch = pad([rows[n] for n in numbers], pad_id, "right", device)
            states = cut(*batch)
            if store is None:
                size = sum(lengths) * states[0, 0].nbytes
                if size > LIMIT:
                    folder.mkdir(parents=True, exist_ok=True)
                    check_room(folder, size)
                store = HeldStates(folder, in_file=size > LIMIT)
            for n, state in zip(numbers, states, strict=True):
                store.put(n, state[: len(rows[n])])
    for module, was in training:
        module.training = was
    assert store is not None
    logger.info("Ran the %d held layers on %d rows, once.", held, len(rows))
    return store


class WithStates:
    """A collator that brings the stored states of its rows, padded like their tokens.

    Args:
        collate: Makes a batch of the rows' other columns.
        states: The stored states, by the number in the column `row`.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], states: HeldStates) -> None:
        self.collate = collate
        self.states = states

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make one batch of rows."""
        held = pad_sequence([self.states[row["row"]] for row in rows], batch_first=True)
        return {**self.collate(rows), "held": held}
