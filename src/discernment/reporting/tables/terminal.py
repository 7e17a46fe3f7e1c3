"""How tables look in the terminal, and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from discernment.reporting.text import MISSING, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Column, Table
    from rich.text import Text

LONGEST_WORD = 24
"""A longer word is cut off where there is no room for it, unless it stands in a column that is kept whole."""

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
    table.add_column(first)
    for name in names:
        table.add_column(Text(visible(name), no_wrap=True), justify="right")
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


def tab_separated(table: Table) -> str:
    """The header and the rows of a table, one line each, the cells between tabs.

    A line over a group of rows stands in front of the first cell of each instead.
    """
    lines = [[_plain(column.header) for column in table.columns]]
    heading = ""
    for row, cells in zip(
        table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True
    ):
        first, *others = (" ".join(_plain(cell).split()) for cell in cells)
        if first and others and not any(others):
            heading = first
            continue
        lines.append([f"{heading}: {first}" if heading else first, *others])
        if row.end_section:
            heading = ""
    return "".join("\t".join(" ".join(cell.split()) for cell in line) + "\n" for line in lines)


def fitted(table: Table, width: int) -> Iterator[Table]:
    """A table in parts that are at most `width` characters wide, so that no word is broken.

    Cells are wrapped at spaces as far as the words allow. What then does not fit goes into further parts below, each of which
    begins with the first column.
    """
    between, edges = (2, 0) if table.box is None else (3, 2)
    room = width - edges
    needed = [min(_narrowest(column), room) for column in table.columns]
    parts: list[list[int]] = [[0]]
    for n in range(1, len(needed)):
        taken = sum(needed[m] + between for m in parts[-1])
        if taken + needed[n] > room and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(n)
    for chosen in parts:
        part = _part(table, chosen, needed, room - between * (len(chosen) - 1))
        if chosen is not parts[0]:
            part.title = None
        if chosen is not parts[-1]:
            part.caption = None
        yield part


def _part(table: Table, chosen: Sequence[int], needed: Sequence[int], room: int) -> Table:
    """Some columns of a table, with the widths that they get of `room`."""
    from copy import copy

    widths = [needed[n] for n in chosen]
    if sum(widths) > room:
        widths[0] = max(1, room - sum(widths[1:]))
    wanted = [max(_widest(table.columns[n]), width) for n, width in zip(chosen, widths, strict=True)]
    while (spare := room - sum(widths)) > 0 and widths != wanted:
        open_ones = [n for n, width in enumerate(widths) if width < wanted[n]]
        for n in open_ones:
            widths[n] += min(
                max(1, spare // len(open_ones)), wanted[n] - widths[n], max(0, room - sum(widths))
            )
    part = copy(table)
    part.columns = [
        replace(table.columns[n], _index=m, width=width, overflow="ellipsis")
        for m, (n, width) in enumerate(zip(chosen, widths, strict=True))
    ]
    return part


def _widest(column: Column) -> int:
    """How wide the column is without wrapping."""
    return max((_length(line) for text in _texts(column) for line in text.split("\n")), default=1) or 1


def _narrowest(column: Column) -> int:
    """How wide the column must be for its words, or for its lines where it is not to be wrapped."""
    from rich.text import Text

    if column.no_wrap:
        return _widest(column)
    words = max(
        (min(_length(word), LONGEST_WORD) for text in _texts(column) for word in text.split()), default=1
    )
    whole = isinstance(column.header, Text) and column.header.no_wrap
    return max(words, _length(_plain(column.header)) if whole else 1)


def _texts(column: Column) -> list[str]:
    return [_plain(column.header), *map(_plain, column.cells)]


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _plain(cell: RenderableType) -> str:
    """The text of a cell without its styles."""
    from rich.text import Text

    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
