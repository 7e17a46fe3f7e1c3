"""Words of a text: normalised for comparing prompts, and reduced to stems for finding a key word in any form."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import regex

APOSTROPHE = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]")
PUNCTUATION = regex.compile(r"[^\w\s]|_")
"""Vowel signs, which Hindi is written with, are no part of words to `re`."""
CHARACTERS = r"\p{Han}\p{Hiragana}\p{Katakana}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
ALPHABETS = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WITHOUT_SPACES = regex.compile(rf"[{CHARACTERS}]|[{ALPHABETS}]+|[^{CHARACTERS}{ALPHABETS}]+")
ALPHABETIC = regex.compile(rf"[{ALPHABETS}]")
TOKEN = regex.compile(r"[\p{L}\p{N}][^\W_]*(?:'[^\W_]+)*")
"""A word as stems are made of: vowel signs belong to it, and the mark that makes a symbol an emoji is none."""
SYLLABLE = re.compile(r"[aeiouy]+[^aeiouy]+")
VOWEL = re.compile(r"[aeiouy]")
DOUBLE = re.compile(r"([^aeioulsz])\1$")
SHORT_SYLLABLE = re.compile(r"^[^aeiou]*[aeiouy][^aeiouwxy]$")

# Derived nouns, verbs and adjectives; cut off only where enough of the word remains (Porter's m > 1).
DERIVED = (
    "ations",
    "ation",
    "ators",
    "ator",
    "ates",
    "ate",
    "ions",
    "ion",
    "ous",
    "ists",
    "ist",
    "ism",
    "al",
)
INFLECTED = ("eries", "ery", "ing", "ed", "er")

IRREGULAR = {
    "beaten": "beat",
    "bit": "bite",
    "bitten": "bite",
    "bled": "bleed",
    "blew": "blow",
    "blown": "blow",
    "broke": "break",
    "broken": "break",
    "burial": "bury",
    "burnt": "burn",
    "caught": "catch",
    "destruction": "destroy",
    "died": "die",
    "dug": "dig",
    "dying": "die",
    "fought": "fight",
    "froze": "freeze",
    "frozen": "freeze",
    "hid": "hide",
    "hidden": "hide",
    "hung": "hang",
    "knives": "knife",
    "lied": "lie",
    "lying": "lie",
    "saboteur": "sabotage",
    "sank": "sink",
    "shook": "shake",
    "shot": "shoot",
    "slain": "slay",
    "stole": "steal",
    "stolen": "steal",
    "struck": "strike",
    "stuck": "stick",
    "sunk": "sink",
    "theft": "thief",
    "thieves": "thief",
    "threw": "throw",
    "thrown": "throw",
    "tore": "tear",
    "torn": "tear",
    "wolves": "wolf",
}


def words(text: str) -> list[str]:
    """The words of `text` in lower case, without punctuation; a contraction is one word (`dont`).

    Where writing has no spaces, each Chinese or Japanese character stands for a word, and each pair of neighbouring
    letters of Thai, Lao, Khmer or Burmese.
    """
    spaced = PUNCTUATION.sub(" ", APOSTROPHE.sub("", _plain(text))).split()
    return [part for word in spaced for part in _parts(word)]


def normalise(text: str) -> str:
    """`text` without the differences of case, punctuation and white space."""
    return " ".join(words(text))


def stems(text: str) -> tuple[str, ...]:
    """The stem of each word of `text`, in order; parts of a hyphenated word stand alone."""
    return tuple(stem(word) for word in TOKEN.findall(APOSTROPHE.sub("'", _plain(text))))


def phrase_of(text: str) -> tuple[str, ...]:
    """The stems of `text` as they are looked for in other texts: of writing without spaces, those of its parts as in `words`."""
    return tuple(
        stem(part) for word in TOKEN.findall(APOSTROPHE.sub("'", _plain(text))) for part in _parts(word)
    )


def stem(word: str) -> str:
    """What the forms of an English word share: kill, kills, killing, killer and killed give `kill`.

    A light form of Porter's algorithm (Program 14(3), 1980): plurals, -ed, -ing, -er and the commonest derived
    endings, with the undoubling and the silent e that keep *rob, robbed, robber* apart from *robe, robes*.
    """
    word = word.removesuffix("'s")
    word = IRREGULAR.get(word) or _singular(word)
    word = IRREGULAR.get(word, word)
    if word.endswith("ied") and len(word) > 4:
        word = f"{word[:-3]}y"
    shorter = _without_ending(word)
    while shorter != word:
        word, shorter = shorter, _without_ending(shorter)
    if word.endswith("e") and not SHORT_SYLLABLE.match(word[:-1]) and len(word) > 4:
        word = word[:-1]
    return word


def _parts(word: str) -> Iterator[str]:
    if word.isascii():
        yield word
        return
    for run in WITHOUT_SPACES.findall(word):
        if len(run) > 1 and ALPHABETIC.match(run):
            yield from map("".join, pairwise(run))
        else:
            yield run


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def _without_ending(word: str) -> str:
    for ending in DERIVED:
        if word.endswith(ending) and len(SYLLABLE.findall(word.removesuffix(ending))) > 1:
            return word.removesuffix(ending)
    if word.endswith("tor") and len(word) > 5:
        return word[:-2]
    for ending in INFLECTED:
        base = word.removesuffix(ending)
        if base != word and len(base) > 2 and VOWEL.search(base):
            if DOUBLE.search(base):
                return base[:-1]
            return f"{base}e" if SHORT_SYLLABLE.match(base) or base.endswith("at") else base
    return word
