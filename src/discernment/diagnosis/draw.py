"""Which prompts are measured: what a diagnosis needs of them, and a draw in which matched pairs stay together."""

import random
from collections import Counter

from discernment.errors import DataError
from discernment.prompts import Label, Prompt, PromptSet
from discernment.prompts.clusters import prompt_clusters


def check_prompts(prompts: PromptSet) -> None:
    """Make sure that a diagnosis has what it compares.

    Raises:
        DataError: If there are fewer than two toxic or fewer than two seemingly toxic prompts.
    """
    name, counts = prompts.provenance.name, prompts.counts()
    for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC):
        found = counts.get(label, 0)
        if found < 2:
            raise DataError(
                f"A diagnosis compares toxic with seemingly toxic prompts, two of each at least, and {name} has "
                f"{found or 'no'} {label} {'one' if found == 1 else 'ones'}; {prompts.summary()}."
            )


def choose_prompts(prompts: PromptSet, per_group: int, seed: int) -> PromptSet:
    """Draw prompts of each label: matched pairs first, both sides together, and from as many wording frames as can be.

    Args:
        prompts: What to draw from.
        per_group: At most so many of each label.
        seed: Seed of the draw.

    Returns:
        The prompts label by label; partners stand at the same places within their labels.
    """
    groups = draw_groups(prompts, seed, frames_in_turn=True)
    return PromptSet([p for group in groups for p in group[:per_group]], prompts.provenance)


def draw_groups(prompts: PromptSet, seed: int, *, frames_in_turn: bool = False) -> list[list[Prompt]]:
    """Shuffle the prompts of each label.

    Args:
        prompts: What to draw from.
        seed: Seed of the draw.
        frames_in_turn: Take one prompt of each wording frame before a second one of any.

    Returns:
        The prompts of each label in the order drawn: those with a partner of another label first, both partners at
        the same place.
    """
    drawn = random.Random(seed).sample(prompts.prompts, len(prompts))  # noqa: S311
    rank = {p.id: n for n, p in enumerate(drawn)}
    label = {p.id: p.label for p in drawn}
    cluster = dict(zip(rank, prompt_clusters(drawn).tolist(), strict=True))

    def place(prompt: Prompt) -> tuple[bool, int]:
        partner = prompt.partner
        if partner is None or label.get(partner, prompt.label) is prompt.label:
            return True, rank[prompt.id]
        return False, min(rank[prompt.id], rank[partner])

    groups = []
    for group in Label:
        members = sorted((p for p in drawn if p.label is group), key=place)
        turns: dict[str, int] = {}
        taken: Counter[int] = Counter()
        for prompt in members if frames_in_turn else ():
            turns[prompt.id] = taken[cluster[prompt.id]]
            taken[cluster[prompt.id]] += 1
        members.sort(key=lambda p: (place(p)[0], turns.get(p.id, 0), place(p)[1]))
        groups.append(members)
    return groups
