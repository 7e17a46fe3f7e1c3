"""Drawing prompts so that matched pairs come first and stay together."""

from __future__ import annotations

import random
from collections.abc import Callable

from discernment.prompts import Prompt, PromptSet

__all__ = ["draw_pairs_first"]


def draw_pairs_first(
    prompts: PromptSet, seed: int
) -> tuple[list[Prompt], Callable[[Prompt], tuple[bool, int]]]:
    """Shuffle prompts, and say where each belongs.

    Args:
        prompts: What to draw from.
        seed: Seed of the draw.

    Returns:
        The prompts in the order drawn, and a key to sort the prompts of one label by: those with a partner of another
        label first, both partners at the same place.
    """
    drawn = random.Random(seed).sample(prompts.prompts, len(prompts))  # noqa: S311
    rank = {p.id: n for n, p in enumerate(drawn)}
    label = {p.id: p.label for p in drawn}

    def place(prompt: Prompt) -> tuple[bool, int]:
        partner = prompt.partner
        if partner is None or label.get(partner, prompt.label) is prompt.label:
            return True, rank[prompt.id]
        return False, min(rank[prompt.id], rank[partner])

    return drawn, place
