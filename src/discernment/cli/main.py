"""The command `discern`: its verbs, a file each, and what a mistake costs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from discernment import __version__
from discernment.cli import align, chat, compare, diagnose, evaluate, refine, report, run, sweep
from discernment.cli.console import write_what_can_be_written
from discernment.cli.judges import calibrate, train
from discernment.cli.prompts import check, export, generate, list_sets, show, split
from discernment.disk import fullest_place, is_full, no_room
from discernment.errors import DiscernmentError, DiskError

INTERRUPTED = 130

app = typer.Typer(
    name="discern",
    help="Which of these models refuses what it should, and only that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts = typer.Typer(help="List, show, check, split, generate and export prompt sets.", no_args_is_help=True)
judges = typer.Typer(help="Measure a judge against people, and train one.", no_args_is_help=True)
app.add_typer(prompts, name="prompts")
app.add_typer(judges, name="judges")

app.command()(run.run)
app.command()(sweep.sweep)
app.command()(refine.refine)
app.command()(align.align)
app.command()(evaluate.evaluate)
app.command()(diagnose.diagnose)
app.command()(compare.compare)
app.command()(report.report)
app.command()(chat.chat)
prompts.command("list")(list_sets.list_sets)
prompts.command()(show.show)
prompts.command()(check.check)
prompts.command()(split.split)
prompts.command()(generate.generate)
prompts.command()(export.export)
judges.command()(calibrate.calibrate)
judges.command()(train.train)


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"discernment {__version__}\n")
        raise typer.Exit


@app.callback()
def discern(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


def main() -> None:
    """Run the command line; a user's mistake gets one sentence and exit code 2."""
    write_what_can_be_written()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer says nothing of a Ctrl-C
            sys.stderr.write("discern: interrupted; the same command goes on from here.\n")
        raise
    except Exception as error:
        said = _in_a_sentence(error)
        if said is None:
            raise
        sys.stderr.write(f"discern: {said}\n")
        sys.exit(2)


def _in_a_sentence(error: Exception) -> str | None:
    """What a user can do about an error; None where that is not known."""
    if isinstance(error, DiskError):
        return str(error)
    if is_full(error):  # outside of what this program writes itself, such as the cache of another library
        named = error.filename if isinstance(error, OSError) else None
        return str(no_room(Path(named).parent if isinstance(named, str) else fullest_place()))
    if isinstance(error, DiscernmentError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:  # which the user named
        return f"{error.filename}: {error.strerror}; name another place or mend this one."
    return None
