"""What a reply says in its own words: markup, code, quotations and dialogues left out, cut into sentences."""

import html
import re
import unicodedata
from collections import Counter
from enum import Enum, auto
from typing import NamedTuple

from discernment.models.thoughts import split_thought

APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u201b\u02bc\u00b4\u2032\uff07", "'"))
BACKTICK = re.compile(r"(?<=\w)`(?=\w)")
MARKS = str.maketrans(
    {
        "\u3002": ". ",
        "\uff61": ". ",
        "\u0964": ". ",
        "\u0965": ". ",
        "\uff01": "! ",
        "\uff1f": "? ",
        "\u061f": "? ",
    }
    | {"\uff1b": "; ", "\u2026": ","}
)
"""Marks that need no space behind them, or that NFKC would turn into the end of a sentence."""
NOT_IN_WORDS = re.compile(r"[^\w'\u0900-\u0903\u093a-\u094f]+|_+")  # signs of Devanagari are no \w
DROPPED = re.compile(r"[\u0300-\u036f\u064b-\u0655\u0670\u0640\u093c]")
"""Accents, Arabic vowel signs and stretches, the dot below Devanagari letters: writers leave them out."""
SAME_LETTERS = str.maketrans({"ى": "ي", "ँ": "ं"})
REPEATED_UNIT = re.compile(r"(.{1,6}?)\1{5,}.{0,6}", re.DOTALL)

TAG = re.compile(
    r"</?(?:a|b|blockquote|br|code|div|em|h[1-6]|i|li|ol|p|span|strong|u|ul)(?:\s[^<>\n]{0,200})?/?>", re.I
)
TORN = re.compile(r" (?=n't\b|'(?:m|re|ve|ll|d|t)\b)")
"""The gap in "ca n't" and "I 'm", which detokenising left."""
FENCED = re.compile(r"^[ \t]*(```|~~~)([^\n`]*)\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`[^`\n]+`")
PLAIN_KINDS = ("", "text", "txt", "plain", "plaintext", "markdown", "md")
CODE = "\ue000"
ECHO = re.compile(r"\A\W*#+ Instruction\b.*^#+ Response:?", re.DOTALL | re.MULTILINE)
"""A base model that writes its own template again before it replies."""
SPEAKER = re.compile(
    r"^\W{0,3}(?!assistant|ai\b|bot\b|answer|response)((?:[^\W\d_][\w.'-]* ?){1,3})\W{0,3}:\s+\S", re.I
)
BLOCKQUOTE = re.compile(r"^\s*>.*$", re.MULTILINE)
QUOTES = re.compile(
    r"\"[^\"\n]+\"|“[^”\n]+”|«[^»\n]+»|»[^«\n]+«|„[^“”\n]+[“”]|「[^」]+」|『[^』]+』"
    r"|(?<![\w'])'(?=\w)(?:[^'\n]|(?<=\w)'(?=\w))+'(?!\w)"
)
LABEL = re.compile(r"\A\W*[^\W\d_]+(?: [^\W\d_]+)?\W*?:(?!//)(?=\W*\w)")
HEADING = re.compile(r"\s*(?:#{1,6}\s.*|\*\*[^*]+\*\*:?|__[^_]+__:?|\[[^\]]+\]|\S+(?: \S+){0,2}:)\s*")
ITEM = re.compile(r"\A\s*(?:[-*•+]\s|\(?\d{1,2}[.):]\s)")
SENTENCE_END = re.compile(r"(?<=[.!?])[^\w\s]*\s+")


class Form(Enum):
    """What a sentence stands in."""

    TEXT = auto()
    HEADING = auto()
    ITEM = auto()
    """An item of a list."""
    CODE = auto()
    """A block of code, whose text is left out."""


class Sentence(NamedTuple):
    """A sentence in the form that phrases are written in: folded words, each with a space behind it."""

    text: str
    form: Form
    announces: bool = False
    """Whether it ends its line with a colon."""


def readable(completion: str) -> str | None:
    """The answer without the thought before it; None if the thought never ended or there is nothing to read."""
    answer = split_thought(completion).answer
    if answer is None:
        return None
    plain = plain_characters(answer)
    return None if _is_garbage(plain) else plain


def plain_characters(text: str) -> str:
    """The text without invisible characters, tags and look-alike forms of letters and marks."""
    text = unicodedata.normalize("NFKC", html.unescape(text).translate(MARKS))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = BACKTICK.sub("'", text.replace("\\'", "'")).translate(APOSTROPHES)
    untagged = TAG.sub(" ", text)
    return TORN.sub("", untagged if any(map(str.isalnum, untagged)) else text)


def fold(text: str) -> str:
    """Lower case, without accents and other signs that writers leave out; phrases are folded too."""
    text = DROPPED.sub("", unicodedata.normalize("NFD", text.casefold()))
    return unicodedata.normalize("NFC", text).translate(SAME_LETTERS)


def words_of(text: str) -> str:
    """The words of a text, folded, each with a space behind it; empty if there are none."""
    words = (w for w in NOT_IN_WORDS.sub(" ", fold(text)).split() if w.strip("'"))
    return "".join(f"{w} " for w in words)


def own_words(text: str) -> str:
    """A readable text without what it only shows: code (a mark stays), dialogues and quotations.

    Where the whole reply stands in a fence or in quotation marks, these are taken off instead; so is a label before it
    ("Answer:"), which gets a line of its own.
    """
    text = _without_code(ECHO.sub("", text))
    speakers = _speakers(text)
    if speakers:
        lines = [(line, SPEAKER.match(line)) for line in text.splitlines()]
        text = "\n".join(line for line, said in lines if said is None or said[1] not in speakers)
    else:
        text = LABEL.sub(r"\g<0>\n", text, count=1)
    outside = BLOCKQUOTE.sub("", text)
    if any(_form(line) in (Form.TEXT, Form.HEADING) and words_of(line) for line in outside.splitlines()):
        text = outside
    outside = QUOTES.sub(" ", text)
    return outside if any(map(str.isalnum, outside)) else text


def sentences(text: str) -> list[Sentence]:
    """Cut own words into sentences."""
    found = []
    for line in _joined(text.splitlines()):
        form = _form(line)
        if form is Form.CODE:
            found.append(Sentence("", form))
            continue
        content = ITEM.sub("", line, count=1)
        parts = [words for part in SENTENCE_END.split(content) if (words := words_of(part))]
        ends = line.rstrip(" *_").endswith(":")
        found += [Sentence(words, form, ends and n == len(parts)) for n, words in enumerate(parts, start=1)]
    return found


def _form(line: str) -> Form:
    if CODE in line:
        return Form.CODE
    if ITEM.match(line):
        return Form.ITEM
    return Form.HEADING if HEADING.fullmatch(line) else Form.TEXT


def _joined(lines: list[str]) -> list[str]:
    """Lines that were wrapped within a sentence are one."""
    found: list[str] = []
    for line in lines:
        before = found[-1].rstrip() if found else ""
        goes_on = line[:1].islower() and before and (before[-1].isalnum() or before[-1] == ",")
        if goes_on and _form(before) is not Form.HEADING:
            found[-1] = f"{before} {line}"
        else:
            found.append(line)
    return found


def _without_code(text: str) -> str:
    whole = FENCED.fullmatch(text.strip())
    if whole is not None and whole[2].strip().casefold() in PLAIN_KINDS:
        return whole[3]
    text = FENCED.sub(f"\n{CODE}\n", text)
    outside = INLINE.sub(" ", text)
    return outside if any(map(str.isalnum, outside)) or CODE in outside else text


def _speakers(text: str) -> set[str]:
    """Who speaks in a dialogue: names before colons, of which one comes again or two are in capitals."""
    names = Counter(found[1] for line in text.splitlines() if (found := SPEAKER.match(line)))
    again = len(names) > 1 and max(names.values()) > 1
    return set(names) if again or sum(name.isupper() and len(name) > 1 for name in names) > 1 else set()


def _is_garbage(text: str) -> bool:
    """Whether there is nothing to read, or a word or two that only repeat themselves."""
    words = NOT_IN_WORDS.sub(" ", text.casefold()).split()
    if not any(c.isalnum() for c in text):
        return True
    few = len(words) >= 6 and len(set(words)) <= min(2, max(1, len(words) // 8))
    return few or REPEATED_UNIT.fullmatch("".join(words)) is not None
