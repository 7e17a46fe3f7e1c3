"""What `discern sweep` calls."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from discernment.cli.console import ConsoleReporter, console
from discernment.reporting.sweep import best_in_words, parameters_in_words, values_in_words, write_sweep
from discernment.reporting.text import duration, visible
from discernment.runs.sweep import run_sweep
from discernment.runs.sweep_plan import read_sweep
from discernment.runs.sweep_results import SweepResults

__all__ = ["sweep_into"]


def sweep_into(path: Path, out: Path | None, trials: int | None) -> None:
    """Run a sweep, print a line a trial, and write its page."""
    sweep = read_sweep(path)
    directory = out or Path("runs") / sweep.name
    page = directory / "sweep.html"

    def say(results: SweepResults, planned: int) -> None:
        trial = results.trials[-1]
        worth = f"failed: {trial.error}" if trial.error else values_in_words(results, trial)
        pruned = " (pruned)" if trial.state == "pruned" else ""
        console.print(
            Text(
                visible(
                    f"Trial {trial.number}, {len(results.trials)} of {planned}: {worth}{pruned}, "
                    f"{duration(trial.seconds)}, with {parameters_in_words(trial)}"
                ),
                style="bold",
            )
        )
        write_sweep(results, page)

    with ConsoleReporter() as reporter:
        results = run_sweep(sweep, directory, trials=trials, reporter=reporter, on_trial=say)
    write_sweep(results, page)
    console.print(Text(visible(best_in_words(results))))
    if results.best:
        console.print(
            "A chosen trial looks better on the prompts that it was chosen by; run its recipe once on others before "
            "reporting a number."
        )
        recipes = ", ".join(str(found) for found in sorted(directory.glob("best*.yaml")))
        console.print(Text(visible(f"Best: {recipes}")))
    console.print(Text(visible(f"Page: {page}; numbers: {directory / 'sweep.json'}")))
