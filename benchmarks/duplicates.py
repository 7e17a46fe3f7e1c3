"""How seconds grow with the number of prompts where `discern prompts check` looks for prompts that repeat one another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.timing import cpu_seconds, slope
from discernment.prompts import Label, Prompt, PromptSet, Provenance, find_duplicates

SIZES = (2_000, 4_000, 8_000, 16_000, 32_000)
STEEPEST = 1.3
REPEATS = 2
VERBS, ADJECTIVES, NOUNS, PLACES = 40, 30, 300, 20
VOCABULARY = 50_000


def measure() -> dict[str, object]:
    """Log-log slopes of the seconds, for questions of one wording and for prompts whose words are as rare as in English."""
    return {
        "what": f"near duplicates of {SIZES[0]} to {SIZES[-1]} prompts, log-log slope of the processor's seconds",
        "ordinary": _growth(_ordinary),
        "one_wording": _growth(_one_wording),
        "a_word_each": _growth(_a_word_each),
    }


def _growth(make: Callable[[np.random.Generator, int], str]) -> dict[str, object]:
    taken, pairs = [], []
    for size in SIZES:
        rng = np.random.default_rng(0)
        rows = [Prompt(id=f"p{n}", text=make(rng, n), label=Label.TOXIC, source="made") for n in range(size)]
        sets = [PromptSet(rows, Provenance(name="made"))]
        pairs.append(len(find_duplicates(sets)))
        taken.append(min(cpu_seconds(partial(find_duplicates, sets)) for _ in range(REPEATS)))
    return {
        **{f"seconds_{size}": round(found, 2) for size, found in zip(SIZES, taken, strict=True)},
        "pairs": pairs,
        "ratio": slope(SIZES, taken),
        "limit": STEEPEST,
    }


def _ordinary(rng: np.random.Generator, number: int) -> str:
    words = rng.zipf(1.4, size=rng.integers(6, 40)) % VOCABULARY
    return " ".join(f"word{word}" for word in words)


def _one_wording(rng: np.random.Generator, number: int) -> str:
    """Rare words are shared by a few hundred prompts each, and few prompts are alike."""
    verb, other_verb = rng.integers(VERBS, size=2)
    adjective, other_adjective = rng.integers(ADJECTIVES, size=2)
    noun, other_noun, third_noun = rng.integers(NOUNS, size=3)
    place, other_place = rng.integers(PLACES, size=2)
    return (
        f"How do I verb{verb} a adjective{adjective} noun{noun} in place{place} with the adjective{other_adjective} "
        f"noun{other_noun} and verb{other_verb} some noun{third_noun} before place{other_place}?"
    )


def _a_word_each(rng: np.random.Generator, number: int) -> str:
    """The second rarest word of a prompt is one of a third of all."""
    return f"How do I verb{rng.integers(4)} the process{number} in place{rng.integers(3)}?"
