"""The options of verbs whose work is done in tasks: how many at a time, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from discernment.cli.options import parse_options
from discernment.errors import RecipeError
from discernment.runs.fleet.engine import Engine
from discernment.runs.fleet.processes import Processes
from discernment.runs.fleet.ray_cluster import RayCluster
from discernment.runs.fleet.slurm import Slurm

Jobs = Annotated[
    int, typer.Option("--jobs", "-J", min=1, help="Tasks worked on side by side, a process each.")
]
EngineName = Annotated[
    Literal["local", "ray", "slurm"],
    typer.Option(help="Where tasks are done: in processes here, on a Ray cluster, as jobs of SLURM."),
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        help=f"Option of the jobs of SLURM as KEY=VALUE: {', '.join(Slurm.model_fields)}; may be repeated.",
    ),
]


def parse_engine(name: str, slurm: Sequence[str] | None) -> Engine:
    """The engine that `--engine` names, with the options of `--slurm`.

    Raises:
        RecipeError: If its package is missing, an option is wrong, or is for another engine.
    """
    if name == Slurm.name:
        engine: Engine = parse_options(Slurm, slurm)
    elif slurm:
        raise RecipeError("--slurm is for `--engine slurm`; give both or none.")
    else:
        engine = RayCluster() if name == RayCluster.name else Processes()
    engine.check()
    return engine
