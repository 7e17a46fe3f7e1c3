"""`discern report`: the HTML report of a run, again."""

from pathlib import Path
from typing import Annotated

import typer

from discernment.cli.console import say
from discernment.cli.options import Redact, out_option


def report(
    run_directory: Annotated[Path, typer.Argument(help="A directory that `run` left.")],
    out: Annotated[
        Path | None, out_option("The HTML file; RUN/report.html by default.", is_file=True)
    ] = None,
    redact: Redact = False,
) -> None:
    """Write the HTML report of a run again."""
    from discernment.reporting.pages.run import write_report

    say(f"Report: {write_report(run_directory, out, redact=redact)}")
