"""Tokens that are drawn, for each prompt by itself: a prompt's neighbours in the batch change nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from discernment.files import content_hash


class Draws:
    """Draws the tokens of one batch of replies.

    Args:
        sequences: Token ids of each prompt.
        max_new_tokens: How many tokens are drawn at most.
        temperature: What the logits are divided by, above 0.
        top_p: The likeliest tokens that together have this probability are drawn from (Holtzman et al. 2020).
        seed: Another seed draws other tokens.
        draws: Which draw of its prompt each row is, counted from 0; the first by default.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        draws: Sequence[int] | None = None,
    ) -> None:
        from transformers import TopPLogitsWarper

        self._temperature = temperature
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        generators = [
            torch.Generator().manual_seed(number) for number in prompt_seeds(sequences, seed, draws)
        ]
        self._uniform = torch.stack(
            [torch.rand(max_new_tokens, generator=g, dtype=torch.float64) for g in generators]
        )

    def __call__(self, logits: Tensor, step: int, numbers: Sequence[int] | None = None) -> Tensor:
        """One token a prompt, shape `[prompts, 1]`.

        Args:
            logits: Shape `[prompts, vocabulary]`.
            step: How many tokens of the reply there are already.
            numbers: Which of the prompts are still replied to; all by default.
        """
        uniform = self._uniform if numbers is None else self._uniform[list(numbers)]
        logits = logits / self._temperature
        if self._nucleus is not None:
            logits = self._nucleus(None, logits)
        # The inverse of the distribution function: the draw of a row is its own, as `torch.multinomial`'s is not.
        below = torch.softmax(logits.double(), -1).cumsum(-1)
        at = uniform[:, step : step + 1].to(logits.device) * below[:, -1:]
        return torch.searchsorted(below, at, right=True)


def seed_of(value: Any) -> int:
    """A seed for what is drawn of a value that has a JSON form."""
    return int(content_hash(value)[:15], 16)


def prompt_seeds(
    sequences: Sequence[Sequence[int]], seed: int, draws: Sequence[int] | None = None
) -> list[int]:
    """The seed of each row's draws, of its token ids, which draw of them it is, and the seed of all."""
    numbers = draws if draws is not None else [0] * len(sequences)
    return [
        seed_of([seed, number, tuple(sequence)]) for number, sequence in zip(numbers, sequences, strict=True)
    ]
