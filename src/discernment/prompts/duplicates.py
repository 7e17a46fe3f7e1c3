"""Prompts that repeat one another: word for word, but for case and punctuation, or in nearly the same words."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from discernment.prompts.prompt import Prompt
from discernment.prompts.prompt_set import PromptSet
from discernment.prompts.set_join import similar_sets
from discernment.prompts.words import normalise

NEAR_THRESHOLD = 0.8
FEWEST_WORDS, MOST_WORDS = 5, 120


class Likeness(StrEnum):
    """How two prompts repeat one another; the strictest that holds."""

    EXACT = "exact"
    """The same text."""
    NORMALISED = "normalised"
    """The same text but for case, punctuation and white space."""
    NEAR = "near"
    """Nearly the same words, in any order."""


@dataclass(frozen=True)
class Duplicate:
    """Two prompts that repeat one another.

    Attributes:
        likeness: How they do.
        similarity: Jaccard similarity of their word sets; 1 where they are the same text.
        first: The one that stands first.
        second: The other.
        first_set: The name of the set that holds `first`.
        second_set: The name of the set that holds `second`.
        across_sets: Whether the two stand in different sets (which may have one name).
    """

    likeness: Likeness
    similarity: float
    first: Prompt
    second: Prompt
    first_set: str
    second_set: str
    across_sets: bool

    @property
    def across_splits(self) -> bool:
        """Whether both have a split, and not the same one."""
        return None not in (self.first.split, self.second.split) and self.first.split != self.second.split

    @property
    def crosses(self) -> bool:
        """Whether the two stand in different sets or in different splits."""
        return self.across_sets or self.across_splits


def find_duplicates(sets: Sequence[PromptSet], *, threshold: float = NEAR_THRESHOLD) -> list[Duplicate]:
    """All pairs of prompts that repeat one another, within each set and across sets.

    Matched partners are near duplicates on purpose and are not reported as such; where they are the same text, they are.

    Args:
        sets: The sets.
        threshold: Jaccard similarity of the word sets from which prompts of 5 to 120 distinct words are near.

    Returns:
        Each pair once, with its strictest likeness, in the order of the prompts.
    """
    prompts = [prompt for s in sets for prompt in s]
    home = [number for number, s in enumerate(sets) for _ in s]
    normalised = [normalise(p.whole) for p in prompts]
    # A long system message that all share would make all of them near.
    vocabularies = [frozenset(normalise(p.text).split()) for p in prompts]

    found: dict[tuple[int, int], tuple[Likeness, float]] = {}
    for pair in _equal(text or None for text in normalised):
        found[pair] = (Likeness.NORMALISED, 1.0)
    for pair in _equal(p.whole for p in prompts):
        found[pair] = (Likeness.EXACT, 1.0)
    eligible = [n for n, words in enumerate(vocabularies) if FEWEST_WORDS <= len(words) <= MOST_WORDS]
    for place, other_place, similarity in similar_sets([vocabularies[n] for n in eligible], threshold):
        first, second = eligible[place], eligible[other_place]
        one, other = prompts[first], prompts[second]
        partners = home[first] == home[second] and (one.partner == other.id or other.partner == one.id)
        if (first, second) not in found and not partners:
            found[first, second] = (Likeness.NEAR, similarity)

    return [
        Duplicate(
            likeness=likeness,
            similarity=similarity,
            first=prompts[first],
            second=prompts[second],
            first_set=sets[home[first]].provenance.name,
            second_set=sets[home[second]].provenance.name,
            across_sets=home[first] != home[second],
        )
        for (first, second), (likeness, similarity) in sorted(found.items())
    ]


def _equal(keys: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    seen: dict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        if key is not None:
            yield from ((earlier, position) for earlier in seen[key])
            seen[key].append(position)
