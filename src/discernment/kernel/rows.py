"""The rows of the Jacobian that a kernel looks at: tokens, or random mixtures of the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputRows:
    """Directions in the space of the logits.

    Attributes:
        values: The coefficients, `[prompts, rows, positions, columns]`, zero at positions that a prompt lacks.
        columns: The token ids that the columns stand for, sorted, `[columns]`.
        tokens: The token of each row, `[prompts][rows]`; None for mixtures.
    """

    values: Tensor
    columns: Tensor
    tokens: list[list[int]] | None

    def select(self, prompts: Sequence[int], most: int) -> OutputRows:
        """The first rows of some of the prompts."""
        tokens = None if self.tokens is None else [self.tokens[p][:most] for p in prompts]
        return OutputRows(self.values[list(prompts), :most], self.columns, tokens)

    def cotangent(self, prompts: Sequence[int], row: int, vocabulary: int) -> Tensor:
        """One row as a cotangent of the logits, `[prompts, positions, vocabulary]`."""
        values = self.values[list(prompts), row]
        if len(self.columns) == vocabulary:
            return values
        full = values.new_zeros(*values.shape[:-1], vocabulary)
        full[..., self.columns] = values
        return full

    def columns_of(self, ids: Tensor) -> Tensor:
        """The column of each token id, or -1 if it has none; shape as `ids`."""
        places = torch.searchsorted(self.columns, ids).clamp(max=len(self.columns) - 1)
        return torch.where(self.columns[places] == ids, places, -1)


def shared_rows(logits: Tensor, positions: Sequence[int], k: int) -> OutputRows:
    """The same k tokens for all prompts, at every position: those with the highest mean probability.

    Args:
        logits: `[prompts, positions, vocabulary]`, the prompts' own positions at the end.
        positions: How many positions each prompt has.
        k: How many tokens.
    """
    mean = torch.stack(
        [torch.softmax(z[-n:].double(), -1).mean(0) for z, n in zip(logits, positions, strict=True)]
    ).mean(0)
    chosen = mean.topk(min(k, len(mean))).indices
    return _token_rows(logits, positions, [[chosen] * n for n in positions])


def own_rows(logits: Tensor, positions: Sequence[int], k: int) -> OutputRows:
    """Each prompt's k most likely tokens, at every position (the authors' scheme)."""
    chosen = [list(z[-n:].topk(min(k, z.shape[-1])).indices) for z, n in zip(logits, positions, strict=True)]
    return _token_rows(logits, positions, chosen)


def reply_rows(logits: Tensor, replies: Sequence[Sequence[int]]) -> OutputRows:
    """The reply's own token at each of its positions."""
    chosen = [[torch.tensor([t], device=logits.device) for t in reply] for reply in replies]
    return _token_rows(logits, [len(reply) for reply in replies], chosen)


def likelihood_rows(logits: Tensor, replies: Sequence[Sequence[int]]) -> OutputRows:
    """One row a prompt: how the log-probability of its reply depends on the logits, 1_y - softmax(z)."""
    n, length, vocabulary = logits.shape
    values = torch.zeros_like(logits)
    for place, reply in enumerate(replies):
        at = torch.arange(length - len(reply), length, device=logits.device)
        values[place, at] = -torch.softmax(logits[place, at], -1)
        values[place, at, torch.tensor(list(reply), device=logits.device)] += 1
    columns = torch.arange(vocabulary, device=logits.device)
    return OutputRows(values.view(n, 1, length, vocabulary), columns, None)


def probe_rows(logits: Tensor, positions: Sequence[int], probes: int, seed: int) -> OutputRows:
    """Two independent sets of Gaussian probes over the whole vocabulary for every prompt, one for each side.

    The probes of a prompt depend on the seed and its place alone.
    """
    n, length, vocabulary = logits.shape
    values = torch.empty(n, 2 * probes, length, vocabulary, dtype=logits.dtype)
    for place in range(n):
        generator = torch.Generator().manual_seed(1_000_003 * seed + place)
        values[place].normal_(generator=generator)
        values[place, :, : length - positions[place]] = 0
    columns = torch.arange(vocabulary, device=logits.device)
    return OutputRows(values.to(logits.device), columns, None)


def _token_rows(logits: Tensor, positions: Sequence[int], chosen: Sequence[Sequence[Tensor]]) -> OutputRows:
    """One row for each chosen token of each position; prompts with fewer rows are filled up with zeros."""
    n, length, _ = logits.shape
    columns = torch.cat([tokens for of_prompt in chosen for tokens in of_prompt]).unique()
    count = max(sum(len(tokens) for tokens in of_prompt) for of_prompt in chosen)
    values = logits.new_zeros(n, count, length, len(columns))
    tokens: list[list[int]] = []
    for place, of_prompt in enumerate(chosen):
        tokens.append([])
        for position, here in enumerate(of_prompt, start=length - positions[place]):
            for token in here.tolist():
                column = int(torch.searchsorted(columns, token))
                values[place, len(tokens[-1]), position, column] = 1
                tokens[-1].append(token)
    return OutputRows(values, columns, tokens)
