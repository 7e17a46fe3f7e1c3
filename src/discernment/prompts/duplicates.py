"""Prompts that repeat one another: word for word, but for case and punctuation, or in nearly the same words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from discernment.prompts.prompt import Prompt, Split
from discernment.prompts.prompt_set import PromptSet
from discernment.prompts.set_join import similar_sets
from discernment.prompts.words import normalise

NEAR_THRESHOLD = 0.8
FEWEST_WORDS, MOST_WORDS = 5, 120

Pair: TypeAlias = tuple[int, int]
Place: TypeAlias = tuple[int, Split | None]


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
    """Prompts that repeat one another, within each set and across sets.

    A text that is there n times is n - 1 pairs, not all of them: each repeat with the first one that stands in another set
    or split, and where none does with the first. So is a near duplicate paired with one of those that have the same words.
    Where two in different sets or splits repeat one another, the later one is in a pair that crosses, at least.

    Matched partners are near duplicates on purpose and are not reported as such; where they are the same text, they are.

    Args:
        sets: The sets.
        threshold: Jaccard similarity of the word sets from which prompts of 5 to 120 distinct words are near.

    Returns:
        Each pair once, with its strictest likeness, in the order of the prompts.
    """
    prompts = [_Placed(prompt, normalise(prompt.whole), n) for n, s in enumerate(sets) for prompt in s]
    found = dict(_equal(prompts))
    for pair, similarity in _near(prompts, threshold):
        found[pair] = (Likeness.NEAR, similarity)
    return [
        Duplicate(
            likeness=likeness,
            similarity=similarity,
            first=prompts[first].prompt,
            second=prompts[second].prompt,
            first_set=sets[prompts[first].home].provenance.name,
            second_set=sets[prompts[second].home].provenance.name,
            across_sets=prompts[first].home != prompts[second].home,
        )
        for (first, second), (likeness, similarity) in sorted(found.items())
    ]


class _Placed(NamedTuple):
    """A prompt, its normalised text, and the number of its set."""

    prompt: Prompt
    text: str
    home: int

    @property
    def place(self) -> Place:
        return self.home, self.prompt.split

    def may_be_near(self, other: _Placed) -> bool:
        """Whether the two are neither one text nor partners."""
        one, two = self.prompt, other.prompt
        partners = self.home == other.home and (one.partner == two.id or two.partner == one.id)
        return self.text != other.text and not partners


class _Alike:
    """Positions of prompts that are alike: in each place the first of each text, which speaks for its repeats there."""

    def __init__(self) -> None:
        self.by_place: dict[Place, dict[str, tuple[int, _Placed]]] = defaultdict(dict)

    def add(self, position: int, placed: _Placed) -> None:
        """Put a prompt behind the others."""
        self.by_place[placed.place].setdefault(placed.text, (position, placed))

    def first_for(
        self, place: Place, may: Callable[[_Placed], bool] = lambda placed: True
    ) -> tuple[bool, int] | None:
        """The first that stands elsewhere, else the first: whether it does not, and its position."""
        firsts = (
            (not _crosses(place, other), next((n for n, placed in texts.values() if may(placed)), None))
            for other, texts in self.by_place.items()
        )
        return min(((within, first) for within, first in firsts if first is not None), default=None)


def _equal(prompts: Sequence[_Placed]) -> Iterator[tuple[Pair, tuple[Likeness, float]]]:
    """Each prompt whose text is there before it, with one of those."""
    alike: dict[tuple[Likeness, str], _Alike] = defaultdict(_Alike)
    for position, placed in enumerate(prompts):
        keys = [(Likeness.EXACT, placed.prompt.whole)]
        if placed.text:
            keys.append((Likeness.NORMALISED, placed.text))
        earlier = [(found, key[0]) for key in keys if (found := alike[key].first_for(placed.place))]
        if earlier:
            (_, first), likeness = min(earlier, key=lambda one: one[0][0])  # the exact one of two that cross
            yield (first, position), (likeness, 1.0)
        for key in keys:
            alike[key].add(position, placed)


def _near(prompts: Sequence[_Placed], threshold: float) -> Iterator[tuple[Pair, float]]:
    """Each prompt with one of every set of words that is near its own, or is its own in another order."""
    owners: dict[frozenset[str], list[int]] = defaultdict(list)
    for position, placed in enumerate(prompts):
        # A long system message that all share would make all of them near.
        words = frozenset(normalise(placed.prompt.text).split())
        if FEWEST_WORDS <= len(words) <= MOST_WORDS:
            owners[words].append(position)
    same = list(owners.values())
    alike = [_Alike() for _ in same]
    for each, positions in zip(alike, same, strict=True):
        for position in positions:
            placed = prompts[position]
            if found := each.first_for(placed.place, placed.may_be_near):
                yield (found[1], position), 1.0
            each.add(position, placed)
    for one, other, similarity in similar_sets(list(owners), threshold):
        for mine, theirs in ((one, other), (other, one)):
            for position in same[mine]:
                placed = prompts[position]
                if found := alike[theirs].first_for(placed.place, placed.may_be_near):
                    yield (min(found[1], position), max(found[1], position)), similarity


def _crosses(one: Place, other: Place) -> bool:
    return one[0] != other[0] or (None not in (one[1], other[1]) and one[1] != other[1])
