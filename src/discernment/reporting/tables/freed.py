"""Harmless prompts that a method answers and the reference refuses, side by side in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from discernment.reporting.naming import label_in_words
from discernment.reporting.text import count, shorten, visible

if TYPE_CHECKING:
    from rich.table import Table

    from discernment.reporting.pages.examples import Freed

CHARACTERS = 120


def freed_table(freed: Freed) -> Table:
    """The first of these prompts, with the beginnings of both replies."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    what = f"{label_in_words[freed.label].capitalize()} prompts that {freed.before} refuses and {freed.after} answers"
    table = Table(
        title=Text(visible(what)),
        caption=f"The first {len(freed.shown)} of {count(freed.answered)}; {count(freed.refused)} went the other way.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("Prompt", freed.before, freed.after):
        table.add_column(Text(visible(name)))
    for example in freed.shown:
        texts = (example.before.prompt, example.before.completion, example.after.completion)
        table.add_row(*(Text(visible(shorten(" ".join(text.split()), CHARACTERS))) for text in texts))
    return table
