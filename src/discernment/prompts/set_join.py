"""All pairs of similar sets among sets that differ, without comparing each set with all others."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, combinations_with_replacement, product
from typing import NamedTuple, TypeAlias

SMALL = 8
"""With at most so many sets in a bucket, or so many pairs a set, comparing costs less than splitting."""
SLACK = 1e-9
PATIENCE = 3
"""How often in a row a bucket is split in vain before its sets are compared."""


class _Place(NamedTuple):
    """A set, and the position in it of the last word that all of its bucket share."""

    owner: int
    position: int


Group: TypeAlias = list[_Place]
GroupPair: TypeAlias = tuple[Group, Group]


class _Bucket(NamedTuple):
    """Sets that share some words.

    Attributes:
        shared: How many words.
        enough: Pairs of groups whose sets are similar by now, and those that are too few to be split.
        more: Pairs of groups whose sets are similar if they share further words.
        spare: How many of its words a set in `more` may have that the other lacks.
    """

    shared: int
    enough: list[GroupPair]
    more: list[GroupPair]
    spare: dict[_Place, int]


def similar_sets(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of sets with at least the given Jaccard similarity.

    Two sets that are that similar share one of their rarest words, so that only sets which do are compared (prefix
    filtering; Bayardo, Ma and Srikant, WWW 2007). The sizes of both say how many words either may have before it. Where
    many share a rare word, as prompts of one wording do, they must share another one soon after, and so on (prefixes as long
    as it pays; Wang, Li and Feng, SIGMOD 2012).

    Args:
        sets: Sets that differ, since all pairs of many equal ones would be more than fit; one without a word is similar to none.
        threshold: Above 0, at most 1.

    Yields:
        Both positions, the lower one first, and the similarity; each pair once.
    """
    for (first, second), similarity in _Join(sets, threshold).run().items():
        yield first, second, similarity


class _Join:
    """One search."""

    def __init__(self, sets: Sequence[frozenset[str]], threshold: float) -> None:
        frequency = Counter(word for words in sets for word in words)
        rarest_first = sorted(frequency, key=lambda word: (frequency[word], word))
        rank = {word: n for n, word in enumerate(rarest_first)}
        self.ordered = [sorted(rank[word] for word in words) for words in sets]
        self.sets = list(map(frozenset, self.ordered))
        self.threshold = threshold
        self.found: dict[tuple[int, int], float] = {}

    def run(self) -> dict[tuple[int, int], float]:
        """The similarity of each pair that is similar enough."""
        spare = {_Place(n, -1): len(words) - self._least(len(words)) for n, words in enumerate(self.ordered)}
        left = [(bucket, PATIENCE) for bucket in self._split(spare, shared=0)]
        while left:
            bucket, patience = left.pop()
            self._compare(bucket.enough)
            pairs = _count(bucket.more)
            if not patience or pairs <= SMALL * len(bucket.spare):
                self._compare(bucket.more)
                continue
            parts = self._split(bucket.spare, bucket.shared)
            pairs_then = sum(_count(part.enough) + _count(part.more) for part in parts)
            if pairs_then > 2 * pairs:  # sets that share nearly all come again in each part
                self._compare(bucket.more)
                continue
            patience = PATIENCE if 2 * pairs_then <= pairs else patience - 1
            left += [(part, patience) for part in parts]
        return self.found

    def _split(self, spare: Mapping[_Place, int], shared: int) -> list[_Bucket]:
        """Buckets by the next word that is shared."""
        by_word: dict[int, Group] = defaultdict(list)
        for (owner, position), lacked in spare.items():
            words = self.ordered[owner]
            for further in range(position + 1, min(len(words), lacked + shared + 1)):
                by_word[words[further]].append(_Place(owner, further))
        return [self._bucket(places, shared + 1) for places in by_word.values() if len(places) > 1]

    def _bucket(self, places: Group, shared: int) -> _Bucket:
        if len(places) <= SMALL:
            return _Bucket(shared, [(places, places)], [], {})
        groups: dict[tuple[int, int], Group] = defaultdict(list)
        for place in places:
            size = len(self.ordered[place.owner])
            groups[size, place.position + 1 - shared].append(place)
        enough: list[GroupPair] = []
        more: list[GroupPair] = []
        most: dict[tuple[int, int], int] = {}
        for one, other in combinations_with_replacement(groups, 2):
            needed = self._common(one[0], other[0])
            if any(lacked > size - needed for size, lacked in (one, other)):
                continue
            (enough if shared >= needed else more).append((groups[one], groups[other]))
            if shared < needed:
                for group in (one, other):
                    most[group] = max(most.get(group, 0), group[0] - needed)
        spare = {place: lacked for group, lacked in most.items() for place in groups[group]}
        return _Bucket(shared, enough, more, spare)

    def _compare(self, pairs: Iterable[GroupPair]) -> None:
        """Keep the pairs of sets that are similar."""
        for group, other_group in pairs:
            couples = combinations(group, 2) if group is other_group else product(group, other_group)
            for (one, _), (other, _) in couples:
                first, second = self.sets[one], self.sets[other]
                common = len(first & second)
                similarity = common / (len(first) + len(second) - common)
                if similarity >= self.threshold:
                    self.found[min(one, other), max(one, other)] = similarity

    def _least(self, size: int) -> int:
        """How many words a set must share with any other."""
        # The slack undoes rounding: 0.8 * 35 is a little more than 28.
        return max(1, math.ceil(self.threshold * size - SLACK))

    def _common(self, size: int, other: int) -> int:
        """How many words two sets of these sizes must share."""
        return max(1, math.ceil(self.threshold * (size + other) / (1 + self.threshold) - SLACK))


def _count(pairs: Iterable[GroupPair]) -> int:
    """How many pairs of sets the pairs of groups are."""
    return sum(
        len(one) * (len(one) - 1) // 2 if one is other else len(one) * len(other) for one, other in pairs
    )
