"""How tables look in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from discernment.reporting.text import MISSING, visible

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

Stack = Sequence[tuple[str, str]]
"""A number and what stands under it, each with its style; the first style holds for all, as far as another one does not undo it."""


class Line(NamedTuple):
    """One row.

    Attributes:
        group: What its numbers are, in words; neighbouring lines of one group stand together under it.
        where: On which prompts, of which task and so on; empty where the group says all.
        numbers: What stands in each column, by the column's name.
    """

    group: str
    where: str
    numbers: Mapping[str, Stack]


def table_of(
    title: str, caption: str | Text, first: str, names: Sequence[str], lines: Iterable[Line]
) -> Table:
    """Lines under a column for each name; the column before these, of what the lines are, is called `first`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column(first, overflow="fold")
    for name in names:
        table.add_column(Text(visible(name)), justify="right", overflow="fold")
    group = ""
    for line in lines:
        if line.group != group:
            group = line.group
            table.add_section()
            if line.where:
                table.add_row(Text(group, style="bold"))
        label = Text(visible(line.where)) if line.where else Text(group, style="bold")
        stacks = [line.numbers.get(name, [(MISSING, "")]) for name in names]
        cells = [
            Text(*number).append_tokens((f"\n{words}", style) for words, style in under)
            for number, *under in stacks
        ]
        table.add_row(label, *cells)
    return table
