"""The phrases of a language, read from `phrases/`."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from discernment.files import packaged_yaml
from discernment.judges.prose import fold

GAP = r"(?:\S+ ){0,4}?"
GAP_OF_CHARACTERS = ".{0,14}?"
WORD = re.compile(r"(?:\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\]|[^\s()\[\]])+")
"""A word of a phrase; what stands in brackets belongs together."""
OPTIONAL = re.compile(r"\(\?:[^()]*\)\?")
"""A word that may be missing, with the space behind it."""
NOTHING = re.compile(r"(?!)")


class Phrasebook(NamedTuple):
    """One expression for each list of phrases; `phrases/en.yaml` says what each list is for."""

    spaced: bool
    """Whether words are told by spaces; the sentences of other languages are searched without any."""
    openings: re.Pattern[str]
    refusals: re.Pattern[str]
    flat: re.Pattern[str]
    questions: re.Pattern[str]
    rebukes: re.Pattern[str]
    exceptions: re.Pattern[str]
    limits: re.Pattern[str]
    preambles: re.Pattern[str]
    answers: re.Pattern[str]
    alternatives: re.Pattern[str]
    referrals: re.Pattern[str]
    texts: re.Pattern[str]
    letters: re.Pattern[str]

    def as_searched(self, words: str) -> str:
        """Words as `prose.words_of` gives them, in the form in which phrases are found."""
        return words if self.spaced else words.replace(" ", "")


@cache
def phrase_lists(language: str) -> Mapping[str, Any]:
    """What the file of a language says."""
    lists: Mapping[str, Any] = packaged_yaml("discernment.judges", f"phrases/{language}.yaml")
    return lists


@cache
def phrasebook(language: str) -> Phrasebook:
    """The phrases of a language, compiled."""
    lists = dict(phrase_lists(language))
    slots, spaced, prefix = lists.pop("slots"), lists.pop("spaced", True), lists.pop("prefix", "")
    names = [name for name in Phrasebook._fields if name != "spaced"]
    unknown = lists.keys() - {*names}
    assert not unknown, unknown
    return Phrasebook(spaced, *(_pattern(lists.get(name, []), slots, spaced, prefix) for name in names))


def _pattern(
    phrases: Sequence[str], slots: Mapping[str, Sequence[str]], spaced: bool, prefix: str
) -> re.Pattern[str]:
    """One expression for all phrases, longest first; see the head of `phrases/en.yaml` for how they are written."""
    space = " " if spaced else ""

    def entry(words: str) -> str:
        return "".join(map(one, WORD.findall(words)))

    def one(word: str) -> str:
        expression = fold(word) if spaced else fold(word).replace(" ", "")
        return f"(?:{expression[:-1]}{space})?" if OPTIONAL.fullmatch(word) else f"{expression}{space}"

    def part(word: str) -> str:
        if word == "*":
            return GAP if spaced else GAP_OF_CHARACTERS
        if word in ("^", "."):
            return "^" if word == "^" else "$"
        if word.startswith("{"):
            entries = sorted(slots[word.strip("{}")], key=len, reverse=True)
            return f"(?:{'|'.join(map(entry, entries))})"
        return entry(word)

    if not phrases:
        return NOTHING
    alternatives = ["".join(map(part, WORD.findall(p))) for p in sorted(phrases, key=len, reverse=True)]
    start = rf"(?<!\S){prefix}" if spaced else ""
    return re.compile(rf"{start}(?:{'|'.join(alternatives)})")
