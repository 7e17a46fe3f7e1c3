"""`discern plan`: what a recipe will take, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import caution, plain_table, prepare_process, print_json, say, show
from discernment.cli.options import AsJson, out_option

if TYPE_CHECKING:
    from discernment.runs.planning.plan import Plan, PlannedStage


def plan(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a recipe that comes along (`discern recipes`).")
    ],
    out: Annotated[Path | None, out_option("Directory of the run, where stages may be done already.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what running a recipe will take: memory and time of each stage, and what is done already."""
    prepare_process()
    from discernment.runs.planning.plan import make_plan
    from discernment.runs.recipe import read_recipe

    parsed = read_recipe(recipe)
    found = make_plan(parsed, out or Path("runs") / parsed.name)
    rows = [_row(stage) for stage in found.stages]
    header = ("stage", "for", "state", "trained", "memory", "time")
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        show(plain_table(header, rows, right=("trained", "memory", "time"), whole=("stage",)))
        _say_sums(found)


def _row(stage: PlannedStage) -> tuple[str, ...]:
    methods = ", ".join(stage.methods[:3]) + (
        f" and {len(stage.methods) - 3} more" if len(stage.methods) > 3 else ""
    )
    about = "" if stage.done else "~"
    return (
        stage.name,
        methods,
        "done" if stage.done else "to do" if stage.fits else "does not fit",
        f"{stage.trained / 1e6:.1f}M" if stage.trained else "",
        "?" if stage.memory is None else f"{about}{_bytes(stage.memory)}",
        "?" if stage.seconds is None else f"{about}{stage.seconds / 60:.1f} min",
    )


def _say_sums(found: Plan) -> None:
    to_do = [stage for stage in found.stages if not stage.done]
    known = [stage for stage in to_do if stage.seconds is not None]
    minutes = sum(stage.seconds or 0.0 for stage in known) / 60
    say(
        f"{len(found.stages) - len(to_do)} of {len(found.stages)} stages are done; the {len(known)} others that can be estimated "
        f"take about {minutes:.0f} min{f' for the first of {found.runs} runs' if found.runs > 1 else ''} (rough)."
    )
    say(
        f"On {found.device} {_bytes(found.room)} can be had; a process takes {_bytes(found.process)} of its own."
    )
    for stage in to_do:
        if not stage.fits:
            ways = "; ".join(f"`{words}` needs {_bytes(memory)}" for words, memory in stage.advice)
            caution(
                f"The stage {stage.name} of {stage.methods[0]} does not fit. {ways or 'Nothing known helps'}."
            )


def _bytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
