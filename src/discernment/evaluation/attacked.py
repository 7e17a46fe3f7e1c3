"""Which prompts an attack is tried on: the toxic ones of every benchmark, as benchmarks of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from discernment.errors import RecipeError
from discernment.evaluation.attacks import COMPLETION_PREFIX, attacks, read_translations
from discernment.prompts import PromptSet

__all__ = ["ATTACKS", "COMPLETION_PREFIX_ATTACK", "LOW_RESOURCE", "Attacked", "attack_benchmarks"]

COMPLETION_PREFIX_ATTACK = "completion_prefix"
"""The attack that begins the reply and leaves the prompt as it is."""
LOW_RESOURCE = "low_resource"
"""The attack that needs translations."""
ATTACKS = (*attacks(), COMPLETION_PREFIX_ATTACK)
"""The names of all attacks."""


@dataclass(frozen=True)
class Attacked:
    """The toxic prompts of all benchmarks under one attack.

    Attributes:
        attack: The attack's name.
        benchmarks: The prompts as they are sent; the sets are called `NAME+ATTACK`.
        reply_prefix: What the reply is begun with, where that is the attack.
    """

    attack: str
    benchmarks: list[PromptSet]
    reply_prefix: str | None = None


def attack_benchmarks(
    names: Sequence[str], benchmarks: Sequence[PromptSet], translations: Path | None = None
) -> tuple[list[Attacked], dict[str, str]]:
    """Apply attacks to the toxic prompts of benchmarks.

    Args:
        names: Names out of `ATTACKS`.
        benchmarks: The benchmarks; those without toxic prompts are left out.
        translations: File for the attack `low_resource`, as `read_translations` reads it.

    Returns:
        The attacked benchmarks, one entry an attack; and why each of the other attacks is skipped.

    Raises:
        RecipeError: If there is an attack and no toxic prompt.
        DataError: If the translations cannot be read, or a prompt has none.
    """
    toxic = [
        b.filter(lambda p: p.label.should_refuse, "a toxic label")
        for b in benchmarks
        if any(p.label.should_refuse for p in b)
    ]
    if names and not toxic:
        raise RecipeError(
            "Attacks need toxic prompts, and no benchmark has any; name one that has, or no attacks."
        )
    suite = attacks(read_translations(translations) if translations else None)
    found: list[Attacked] = []
    skipped: dict[str, str] = {}
    for name in names:
        if name == COMPLETION_PREFIX_ATTACK:
            same = [b.renamed(f"{b.provenance.name}+{name}") for b in toxic]
            found.append(Attacked(name, same, COMPLETION_PREFIX))
        elif reason := suite[name].skipped:
            skipped[name] = reason
        else:
            found.append(Attacked(name, [suite[name].apply(b) for b in toxic]))
    return found, skipped
