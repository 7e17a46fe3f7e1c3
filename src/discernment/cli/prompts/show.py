"""`discern prompts show`: some prompts of a set."""

from typing import Annotated

import typer

from discernment.cli import options
from discernment.cli.console import console, say
from discernment.prompts import Label, Split


def show(
    name: options.SetName,
    label: Annotated[Label | None, typer.Option(help="Only prompts with this label.")] = None,
    split: Annotated[Split | None, typer.Option(help="Only prompts of this split.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many prompts to draw.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
) -> None:
    """Show some prompts of a set."""
    reading = options.parse_reading([name], column, fixed_label, label_map, encoding)
    prompts = options.load_set(name, reading)
    if label is not None:
        prompts = prompts.with_label(label)
    if split is not None:
        prompts = prompts.with_split(split)
    for p in prompts.sample(count, seed):
        say(" · ".join(part for part in (p.id, p.label, p.category, p.split) if part), "dim")
        say(p.whole)
        if p.response:
            say(f"→ {p.response}", "italic")
        console.print()
    counts = ", ".join(f"{n} {label}" for label, n in prompts.counts().items())
    origin = prompts.provenance
    about = [f"{len(prompts)} prompts ({counts})", origin.licence, origin.address, origin.note]
    say(". ".join(part for part in about if part), "dim")
