"""`discern prompts export`: prompt sets as a task of inspect_ai."""

from pathlib import Path
from typing import Annotated

import typer

from discernment.cli import options
from discernment.cli.console import say
from discernment.errors import DataError
from discernment.prompts import load_source, load_suite


def export(
    out: Annotated[Path, options.out_option("Directory for the task and its prompts.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SET]...", help=options.SET_HELP, show_default=False)
    ] = None,
    suite: Annotated[str | None, typer.Option(help="A suite of benchmarks: paper, quick or full.")] = None,
    task: Annotated[str, typer.Option(help="Name of the task and its files.")] = "over_refusal",
    max_tokens: Annotated[int, typer.Option(min=1, help="Token cap of a reply.")] = 256,
    column: options.Column = None,
    fixed_label: options.FixedLabel = None,
    label_map: options.LabelMap = None,
    encoding: options.Encoding = None,
) -> None:
    """Write prompt sets as a task of inspect_ai, for its models and its viewer."""
    from discernment.evaluation.inspect_export import export_inspect_task

    reading = options.parse_reading(names or [], column, fixed_label, label_map, encoding)
    sets = [options.load_set(name, reading).renamed(name) for name in names or []]
    if suite is not None:
        sets += [load_source(source).renamed(source.set) for source in load_suite(suite)]
    if not sets:
        raise DataError("There is nothing to export; name a prompt set or a suite.")
    path = export_inspect_task(sets, out, name=task, max_tokens=max_tokens)
    count = sum(map(len, sets))
    say(f"Task: {path}, {count} prompts; run it in {out} with: inspect eval {path.name} --model MODEL")
