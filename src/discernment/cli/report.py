"""`discern report`: the HTML report of a run, again."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from discernment.cli.console import say
from discernment.cli.options import Redact, out_option
from discernment.errors import RecipeError


def report(
    run_directory: Annotated[Path, typer.Argument(help="A directory that `run` left.")],
    out: Annotated[
        Path | None,
        out_option(
            "The HTML file; RUN/report.html by default, of several seeds RUN/seeds.html.", is_file=True
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Of several seeds: the method that the others are compared with.")
    ] = None,
    redact: Redact = False,
) -> None:
    """Write the HTML report of a run again.

    Of a run with several seeds: the page and the tables of all together; with `--redact` also the report of each.
    """
    from discernment.runs.directory import SEEDS

    if out is not None and out.exists() and out.suffix not in (".html", ".htm"):
        raise RecipeError(
            f"{out} is there already and is no page; name a file that ends in .html with --out."
        )
    if (run_directory / SEEDS).is_file():
        from discernment.reporting.seed_runs import report_seeds

        say(f"Page: {report_seeds(run_directory, out, reference=reference)}")
        if redact:  # the page of all together shows no prompts
            _redact_each(run_directory)
        return
    if reference is not None:
        command = shlex.join(["discern", "compare", str(run_directory), "--reference", reference])
        raise RecipeError(
            f"{run_directory} is no run with several seeds, which `--reference` is for; with one seed, `{command}` does it."
        )
    from discernment.reporting.pages.run import write_report

    say(f"Report: {write_report(run_directory, out, redact=redact)}")


def _redact_each(directory: Path) -> None:
    from discernment.reporting.pages.run import write_report
    from discernment.runs.directory import folder_of

    for results in sorted(directory.glob(f"{folder_of('*')}/results.json")):
        say(f"Report: {write_report(results.parent, redact=True)}")
