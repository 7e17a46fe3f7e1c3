"""Splits by what prompts share: no frame, key word, partner or repeated text stands on two sides."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from discernment.errors import DataError
from discernment.prompts.duplicates import find_duplicates
from discernment.prompts.prompt import Prompt, Split
from discernment.prompts.prompt_set import PromptSet
from discernment.prompts.words import phrase_of

DEFAULT_FRACTIONS: Mapping[Split, float] = {Split.TRAIN: 0.8, Split.VALIDATION: 0.1, Split.TEST: 0.1}

SLOT = "{}"
ANY_KEYWORD = ("*",)
EVERYTHING: tuple[str, ...] = ()

Kind = Literal["frame", "keyword", "partner"]
Stratum: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class SplitLeak:
    """Something that a held-out prompt is meant to keep for itself, found in training.

    Attributes:
        kind: What it is.
        value: The frame, the key word, or the partner's id.
        train: The prompt in training whose text or response holds it.
        held_out: The first held-out prompt that it belongs to.
    """

    kind: Kind
    value: str
    train: Prompt
    held_out: Prompt


def split_leaks(train: Iterable[Prompt], held_out: Iterable[Prompt]) -> list[SplitLeak]:
    """What training gives away of the prompts that are held out.

    Reported are, of each held-out prompt: its frame, if training has it too (also with another key word) or spells it
    out; its key word in any inflected form, in a text or a response; its partner.

    Args:
        train: The prompts that are trained on.
        held_out: The prompts of validation or test.

    Returns:
        Each frame, key word or partner once for every training prompt that holds it.
    """
    train = list(train)
    held_out = list(held_out)
    shared = _Shared(train)
    by_id = {p.id: p for p in train}
    leaks: dict[tuple[str, str, str], SplitLeak] = {}
    # A frame or key word leaks by the first held-out prompt that has it: the others need not look again.
    frames: set[tuple[str, tuple[str, ...]]] = set()
    keywords: set[str] = set()
    for prompt in held_out:
        found: list[tuple[Kind, str, Prompt]] = []
        if prompt.frame and (frame := (prompt.frame, _skeleton(prompt))) not in frames:
            frames.add(frame)
            found += [("frame", prompt.frame, train[i]) for i in shared.with_frame_of(prompt)]
        if prompt.keyword and prompt.keyword not in keywords:
            keywords.add(prompt.keyword)
            found += [("keyword", prompt.keyword, train[i]) for i in shared.with_keyword_of(prompt)]
        if prompt.partner in by_id:
            found.append(("partner", by_id[prompt.partner].id, by_id[prompt.partner]))
        for kind, value, leaking in found:
            leaks.setdefault((kind, value, leaking.id), SplitLeak(kind, value, leaking, prompt))
    return list(leaks.values())


def assign_splits(
    prompts: PromptSet, fractions: Mapping[Split, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> PromptSet:
    """Give each prompt a split, so that `split_leaks` finds nothing and no text repeats across splits.

    Prompts that share a frame, a key word (one's key word in the other's text included), a pair or a text stay
    together; these groups are dealt out so that the numbers of prompts, of each label and of each category come as
    close to `fractions` as they can (least squares; a seeded start, then moves of single groups while they help).

    Args:
        prompts: The prompts; splits that they have already are replaced.
        fractions: The share of each split; a split that is missing or 0 gets no prompt.
        seed: Which of the equally good splits.

    Returns:
        The same prompts in the same order. The result does not depend on that order.

    Raises:
        DataError: If the fractions do not add up to 1, or too few groups are there to fill every split.
    """
    wanted = {split: share for split, share in fractions.items() if share > 0}
    if min(fractions.values(), default=0) < 0 or abs(sum(wanted.values()) - 1) > 1e-6:
        shares = ", ".join(f"{split} {share:g}" for split, share in fractions.items())
        raise DataError(
            f"The shares of the splits must lie between 0 and 1 and add up to 1, not be {shares}."
        )
    groups = [sorted(group, key=lambda i: prompts[i].id) for group in _groups(prompts)]
    if len(groups) < len(wanted):
        raise DataError(
            f"{prompts.provenance.name} cannot be split into {len(wanted)}: its {len(prompts)} prompts hang together "
            f"in {len(groups)} group(s) by frames, key words, partners or repeated texts; use fewer splits."
        )
    groups.sort(key=lambda group: prompts[group[0]].id)
    random.Random(seed).shuffle(groups)  # noqa: S311
    groups.sort(key=len, reverse=True)
    chosen = _deal([Counter(s for i in group for s in _strata(prompts[i])) for group in groups], wanted)
    split_of = {i: split for group, split in zip(groups, chosen, strict=True) for i in group}
    return PromptSet(
        [p.model_copy(update={"split": split_of[i]}) for i, p in enumerate(prompts)], prompts.provenance
    )


class _Shared:
    """An index of prompts by their frames and by the words of their texts and responses."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.texts = [phrase_of(f"{p.text}\n{p.response or ''}") for p in prompts]
        self.places: dict[str, set[int]] = defaultdict(set)
        self.frames: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for i, (prompt, text) in enumerate(zip(prompts, self.texts, strict=True)):
            for word in text:
                self.places[word].add(i)
            if prompt.frame:
                self.frames[_skeleton(prompt)].add(i)

    def with_keyword_of(self, prompt: Prompt) -> list[int]:
        """The prompts whose text or response has the key word in any form."""
        return self._holding([phrase_of(prompt.keyword or "")])

    def with_frame_of(self, prompt: Prompt) -> list[int]:
        """The prompts that have the frame, whatever the key word, or spell it out."""
        spelled_out = self._holding([phrase_of(part) for part in (prompt.frame or "").split(SLOT)])
        return sorted(self.frames[_skeleton(prompt)].union(spelled_out))

    def _holding(self, phrases: Sequence[tuple[str, ...]]) -> list[int]:
        phrases = [phrase for phrase in phrases if phrase]
        if not phrases:
            return []
        places = [self.places.get(word, set()) for phrase in phrases for word in phrase]
        candidates = set.intersection(*sorted(places, key=len))
        return sorted(i for i in candidates if _in_order(phrases, self.texts[i]))


def _in_order(phrases: Iterable[tuple[str, ...]], text: tuple[str, ...]) -> bool:
    start = 0
    for phrase in phrases:
        size = len(phrase)
        while text[start : start + size] != phrase:
            start += 1
            if start + size > len(text):
                return False
        start += size
    return True


def _skeleton(prompt: Prompt) -> tuple[str, ...]:
    """The frame's stems with the key word left open: frames that differ in their key word only are the same."""
    keyword = phrase_of(prompt.keyword or "")
    skeleton: tuple[str, ...] = ()
    for part in (prompt.frame or "").split(SLOT):
        words = phrase_of(part)
        at = next((i for i in range(len(words)) if keyword and words[i : i + len(keyword)] == keyword), None)
        if at is not None:
            words = words[:at] + ANY_KEYWORD + words[at + len(keyword) :]
        skeleton += (*words, SLOT)
    return skeleton


def _groups(prompts: PromptSet) -> list[list[int]]:
    """What hangs together by what the prompts share."""
    from discernment.prompts.clusters import linked

    groups: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(linked(list(_edges(prompts)), len(prompts)).tolist()):
        groups[number].append(i)
    return list(groups.values())


def _edges(prompts: PromptSet) -> Iterator[tuple[int, int]]:
    shared = _Shared(prompts.prompts)
    position = {p.id: i for i, p in enumerate(prompts)}
    # What holds a frame or key word is joined to the first prompt that has it, and so are its other owners.
    owners: dict[tuple[str, ...], int] = {}
    for i, prompt in enumerate(prompts):
        if prompt.partner in position:
            yield i, position[prompt.partner]
        for kind, value, holders in (
            ("frame", prompt.frame, shared.with_frame_of),
            ("keyword", prompt.keyword, shared.with_keyword_of),
        ):
            if value:
                owner = owners.setdefault((kind, *(phrase_of(value) or (value,))), i)  # symbols have no stem
                yield owner, i
                if owner == i:
                    yield from ((i, j) for j in holders(prompt))
    for duplicate in find_duplicates([prompts]):
        yield position[duplicate.first.id], position[duplicate.second.id]


def _strata(prompt: Prompt) -> tuple[Stratum, ...]:
    return EVERYTHING, (prompt.label.value,), (prompt.label.value, prompt.category or "")


def _deal(groups: Sequence[Counter[Stratum]], wanted: Mapping[Split, float]) -> list[Split]:
    """Choose a split for each group: least squares of (present - wanted) / sqrt(total) over splits and strata."""
    total: Counter[Stratum] = Counter()
    for group in groups:
        total.update(group)
    present: dict[Split, Counter[Stratum]] = {split: Counter() for split in wanted}

    def cost(group: Counter[Stratum], split: Split) -> float:
        return sum(
            n * (2 * (present[split][stratum] - wanted[split] * total[stratum]) + n) / total[stratum]
            for stratum, n in group.items()
        )

    chosen: list[Split] = []
    for group in groups:
        split = min(wanted, key=lambda split: cost(group, split))
        present[split].update(group)
        chosen.append(split)
    moved = True
    while moved:
        moved = False
        for i, group in enumerate(groups):
            present[chosen[i]].subtract(group)
            best = min(wanted, key=lambda split: cost(group, split))
            if cost(group, best) < cost(group, chosen[i]) - 1e-9:
                chosen[i], moved = best, True
            present[chosen[i]].update(group)
    for split in [s for s in wanted if s not in chosen]:
        spare = [i for i in range(len(groups)) if chosen.count(chosen[i]) > 1]
        chosen[min(spare, key=lambda i: groups[i][EVERYTHING])] = split
    return chosen
