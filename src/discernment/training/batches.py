"""The batches of stage 1: labels in set parts, sources in equal parts, partners together; and the order of rows."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from discernment.errors import TrainingError
from discernment.models.batch import pad
from discernment.prompts import Label, Prompt


class EpochSampler(Sampler[int]):
    """Row numbers in an order that depends on the seed and the epoch alone, so that a resumed stage sees the same.

    Args:
        order: Gives the row numbers of one epoch from a seeded generator.
        length: Number of rows an epoch.
        seed: The stage's seed.
    """

    def __init__(self, order: Callable[[torch.Generator], Sequence[int]], length: int, seed: int) -> None:
        self.order = order
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows_of(self.epoch))

    def rows_of(self, epoch: int) -> Sequence[int]:
        """The row numbers of an epoch, in order."""
        # Spread seeds apart, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        return self.order(torch.Generator().manual_seed(1_000_003 * self.seed + epoch))

    def __len__(self) -> int:
        return self.length


class BalancedBatches(EpochSampler):
    """Row numbers in blocks of `batch_size`, each block balanced.

    Within a block every label has its share of the prompts (up to one). Within a label the sources take turns, so
    that a large source does not stand for its label. Within a source no prompt comes twice before all have come.

    Args:
        prompts: The prompts to draw from.
        batch_size: Prompts a block.
        seed: The stage's seed.
        matched: Put the partners of a block's first label in the same block, before others take their turns: the
            contrast then cannot be told by the wording frame. The labels take turns in coming first.
        weights: How many prompts of each label come into a block, in proportion; 1 for a label that is not named.
        extra: Row numbers that take turns at the end of every block, outside the balance.
        extra_size: How many of them a block gets.
        accumulation: Blocks a step. An epoch is a whole number of steps: the training loop ends one with the epoch.

    Attributes:
        block_size: Rows a block, the extra ones included.

    Raises:
        TrainingError: If there is only one label, or a block has no room for two prompts of each.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        batch_size: int,
        seed: int,
        *,
        matched: bool = True,
        weights: Mapping[Label, float] | None = None,
        extra: Sequence[int] = (),
        extra_size: int = 0,
        accumulation: int = 1,
    ) -> None:
        self.batch_size = batch_size
        self.matched = matched
        self.rows: dict[Label, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for row, prompt in enumerate(prompts):
            self.rows[prompt.label][prompt.source].append(row)
        self.labels = [label for label in Label if label in self.rows]
        if len(self.labels) < 2:
            raise TrainingError(
                f"The contrast needs prompts of two labels and has only {' and '.join(self.labels) or 'none'}; "
                "name more sets."
            )
        # As they are written: a sum of tenths is no whole number in floating point.
        self.weights = {label: Fraction(str((weights or {}).get(label, 1))) for label in self.labels}
        needed = math.ceil(2 * sum(self.weights.values()) / min(self.weights.values()))
        if batch_size < needed:
            raise TrainingError(
                f"A batch of {batch_size} has no room for two prompts of each of {len(self.labels)} labels; "
                f"use a batch size of at least {needed}."
            )
        by_id = {p.id: row for row, p in enumerate(prompts)}
        self.partner = {row: by_id[p.partner] for row, p in enumerate(prompts) if p.partner in by_id}
        self.extra = {"extra": list(extra)}
        self.extra_size = extra_size if extra else 0
        self.block_size = batch_size + self.extra_size
        steps = math.ceil(math.ceil(len(prompts) / batch_size) / accumulation)
        super().__init__(self._epoch, steps * accumulation * self.block_size, seed)

    def drawn(self, blocks: int) -> Iterator[int]:
        """Row numbers of the first blocks of a training, over as many epochs as they take."""
        return islice(chain.from_iterable(map(self.rows_of, count())), blocks * self.block_size)

    def _epoch(self, generator: torch.Generator) -> list[int]:
        draws = {label: _take_turns(self.rows[label], generator) for label in self.labels}
        extra = _take_turns(self.extra, generator)
        order: list[int] = []
        borrowed: set[int] = set()
        for number in range(self.length // self.block_size):
            # Partners fill up the labels that come later in a block, so the labels take turns in coming first:
            # prompts without a partner are drawn too.
            first = number % len(self.labels)
            order += self._block(draws, borrowed, self.labels[first:] + self.labels[:first])
            order += [next(extra) for _ in range(self.extra_size)]
        return order

    def _block(
        self, draws: dict[Label, Iterator[int]], borrowed: set[int], labels: Sequence[Label]
    ) -> list[int]:
        block: list[int] = []
        for place, label in enumerate(labels):
            left = sum(self.weights[other] for other in labels[place:])
            # The last label fills the block, however its share is rounded.
            share = self.batch_size - len(block)
            if place < len(labels) - 1:
                share = math.floor(share * self.weights[label] / left)
            chosen: list[int] = []
            if self.matched and place > 0:
                partners = [self.partner[row] for row in block if row in self.partner]
                own = {row for rows in self.rows[label].values() for row in rows}
                chosen = [row for row in dict.fromkeys(partners) if row in own][:share]
            borrowed.update(chosen)
            spare = sum(len(rows) for rows in self.rows[label].values()) - len(chosen)
            while len(chosen) < share:
                row = next(draws[label])
                if row in borrowed:  # it has come as a partner instead of in its own turn
                    borrowed.remove(row)
                elif row not in chosen or spare <= 0:
                    chosen.append(row)
                    spare -= 1
            block += chosen
        return block


def _take_turns(sources: dict[str, list[int]], generator: torch.Generator) -> Iterator[int]:
    """Endless row numbers: a random source order each round, each source without repeats until it is used up."""
    queues: dict[str, list[int]] = {source: [] for source in sources}
    names = list(sources)
    while True:
        for index in torch.randperm(len(names), generator=generator).tolist():
            name = names[index]
            if not queues[name]:
                order = torch.randperm(len(sources[name]), generator=generator).tolist()
                queues[name] = [sources[name][i] for i in order]
            yield queues[name].pop()


class PromptRows(Dataset[dict[str, Any]]):
    """Encoded prompts with their numbers, their label and source numbers and, for retained ones, the states at the start."""

    def __init__(
        self,
        sequences: Sequence[list[int]],
        labels: Sequence[int],
        references: Sequence[Tensor | None],
        sources: Sequence[int] | None = None,
    ):
        sources = [0] * len(sequences) if sources is None else sources
        self.rows: list[dict[str, Any]] = [
            {"row": row, "input_ids": ids, "label": label, "source": source, "reference": reference}
            for row, (ids, label, source, reference) in enumerate(
                zip(sequences, labels, sources, references, strict=True)
            )
        ]

    @property
    def mean_length(self) -> float:
        """Mean number of tokens a row."""
        return sum(len(row["input_ids"]) for row in self.rows) / max(1, len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Collator:
    """Right-padded batches; the references are padded like the tokens.

    Args:
        pad_id: The padding token.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Make one batch of rows."""
        batch = {
            **pad([r["input_ids"] for r in rows], self.pad_id, "right")._asdict(),
            "labels": torch.tensor([r["label"] for r in rows]),
            "sources": torch.tensor([r["source"] for r in rows]),
        }
        references = [r["reference"] for r in rows if r["reference"] is not None]
        if references:
            batch["references"] = nn.utils.rnn.pad_sequence(references, batch_first=True)
        return batch
