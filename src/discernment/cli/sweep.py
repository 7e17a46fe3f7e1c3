"""`discern sweep`: a search over a recipe's options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import notice, prepare_process, print_json, say
from discernment.cli.engines import EngineName, Jobs, SlurmOptions, parse_engine
from discernment.cli.options import AsJson, Verify, out_option

if TYPE_CHECKING:
    from discernment.runs.search.sweep import SweepResults


def sweep(
    sweep: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a sweep that comes along (`discern recipes`).")
    ],
    out: Annotated[Path | None, out_option("Directory for the results.")] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many trials there shall be, earlier ones included.")
    ] = None,
    verify: Verify = False,
    jobs: Jobs = 1,
    engine: EngineName = "local",
    slurm: SlurmOptions = None,
    as_json: AsJson = False,
) -> None:
    """Search over a recipe's options; the same command goes on where it was."""
    prepare_process()
    from discernment.cli.reporter import ConsoleReporter
    from discernment.ranks import check_alone
    from discernment.reporting.pages.sweep import write_sweep
    from discernment.runs.search.optimise import run_sweep
    from discernment.runs.search.sweep import read_sweep

    check_alone("A sweep")
    at = parse_engine(engine, slurm)
    parsed = read_sweep(sweep)
    directory = out or Path("runs") / parsed.name
    page = directory / "sweep.html"

    def show_trial(results: SweepResults, planned: int) -> None:
        notice(_newest_in_words(results, planned), "bold")
        write_sweep(results, page)

    with ConsoleReporter() as reporter:
        results = run_sweep(
            parsed,
            directory,
            trials=trials,
            reporter=reporter,
            on_trial=show_trial,
            verify=verify,
            jobs=jobs,
            engine=at,
        )
    write_sweep(results, page)
    _report(results, directory, as_json=as_json)
    notice(f"Page: {page}; numbers: {directory / 'sweep.json'}")


def _newest_in_words(results: SweepResults, planned: int) -> str:
    """The trial that ended last, as a line."""
    from discernment.reporting.pages.sweep import parameters_in_words, values_in_words
    from discernment.reporting.text import duration

    trial = results.trials[-1]
    worth = f"failed: {trial.error}" if trial.error else values_in_words(results, trial)
    pruned = " (pruned)" if trial.state == "pruned" else ""
    return (
        f"Trial {trial.number}, {len(results.trials)} of {planned}: {worth}{pruned}, "
        f"{duration(trial.seconds)}, with {parameters_in_words(trial)}"
    )


def _report(results: SweepResults, directory: Path, *, as_json: bool) -> None:
    """Print what was found, and where the best recipes are."""
    from discernment.reporting.pages.sweep import best_in_words

    if as_json:
        print_json(results.model_dump(mode="json"))
    else:
        say(best_in_words(results))
    if results.best:
        notice(
            "A chosen trial looks better on the prompts that it was chosen by; run its recipe once on others before "
            "reporting a number."
        )
        notice(f"Best: {', '.join(str(found) for found in sorted(directory.glob('best*.yaml')))}")
