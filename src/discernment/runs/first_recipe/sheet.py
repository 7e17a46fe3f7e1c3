"""YAML with a reason above every choice: what PyYAML writes has no comments."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import yaml

WIDTH = 110


class Sheet:
    """Lines of a YAML file, from top to bottom."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.depth = 0

    def comment(self, text: str) -> None:
        """Write a comment, over as many lines as it takes."""
        indent = "  " * self.depth
        # What a line may not hold in YAML, or would act in a terminal, may stand in a name of the user's.
        plain = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
        wrapped = textwrap.wrap(
            plain, WIDTH - len(indent) - 2, break_on_hyphens=False, break_long_words=False
        )
        self.lines += [f"{indent}# {line}" for line in wrapped]

    def key(self, name: str, value: Any, reason: str) -> None:
        """Write a key with its value in one line, below its reason."""
        self.comment(reason)
        self.lines.append(f"{'  ' * self.depth}{name}: {in_flow(value)}")

    def listed(self, name: str, values: Sequence[tuple[Any, str]], reason: str) -> None:
        """Write a key with a list, an item a line with what it is behind it; a list of one as the item itself."""
        if len(values) == 1:
            self.key(name, values[0][0], reason)
            return
        self.comment(reason)
        self.lines.append(f"{'  ' * self.depth}{name}:")
        self.lines += [f"{'  ' * (self.depth + 1)}- {in_flow(value)}  # {what}" for value, what in values]

    def item(self, value: Any, reason: str) -> None:
        """Write an item of a list below its reason."""
        self.comment(reason)
        self.lines.append(f"{'  ' * self.depth}- {in_flow(value)}")

    def open(self, name: str) -> None:
        """Begin a mapping or a list; `close` ends it."""
        self.lines.append(f"{'  ' * self.depth}{name}:")
        self.depth += 1

    def close(self) -> None:
        """End the innermost mapping or list."""
        self.depth -= 1

    @property
    def text(self) -> str:
        """The whole file."""
        return "\n".join(self.lines) + "\n"


def in_flow(value: Any) -> str:
    """A value as YAML in one line."""
    wide = float("inf")
    written: str = yaml.safe_dump(
        value, default_flow_style=True, width=wide, sort_keys=False, allow_unicode=False
    )
    return written.removesuffix("\n").removesuffix("\n...")
