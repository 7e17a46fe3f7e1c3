"""The commands that the documents tell a reader to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEYWORDS = {"do", "done", "then"}


class Typed(NamedTuple):
    """One command.

    Attributes:
        words: The program and its arguments.
        to: The file that its output goes to.
    """

    words: list[str]
    to: str | None = None


def in_blocks(page: Path) -> list[Typed]:
    """All commands of a page's blocks of shell."""
    blocks = FENCED.findall(page.read_text(encoding="utf-8"))
    return [c for language, code in blocks if language in ("bash", "console") for c in commands(code)]


def in_lines(page: Path) -> list[Typed]:
    """What begins with `discern` or `make` in single backticks; N stands for a number there."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    quoted = [" ".join(q.split()) for q in re.findall(r"`((?:discern|make) [^`]+)`", text)]
    return [c for q in quoted for c in commands(re.sub(r"\bN\b", "2", q))]


def commands(code: str) -> Iterator[Typed]:
    """The commands of a piece of shell, without assignments, loops and comments."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        parts: list[list[str]] = [words]
        for word in lexer:
            if word and set(word) <= set(";|&"):
                parts.append(words := [])
            else:
                words.append(word)
        yield from (typed for part in parts if (typed := _command(part)))


def _command(words: Sequence[str]) -> Typed | None:
    rest = list(words)
    while rest and (rest[0] in KEYWORDS or re.match(r"\w+=", rest[0])):
        rest.pop(0)
    if not rest or rest[0] in ("for", "export"):
        return None
    if ">" in rest:
        return Typed(rest[: rest.index(">")], rest[rest.index(">") + 1])
    return Typed(rest)
