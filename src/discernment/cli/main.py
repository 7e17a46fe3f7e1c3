"""The command `discern`: its verbs, a file each, and what a mistake costs."""

import logging
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from discernment import __version__, ranks
from discernment.cli.examples import epilog
from discernment.cli.late import add_verb
from discernment.disk import fullest_place, is_full, no_room
from discernment.errors import DiscernmentError, DiskError

INTERRUPTED = 130

app = typer.Typer(
    name="discern",
    help="Which of these models refuses what it should, and only that?",
    no_args_is_help=True,
    epilog=epilog(""),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts = typer.Typer(
    help="List, show, check, split, generate and export prompt sets.",
    no_args_is_help=True,
    epilog=epilog("prompts"),
)
judges = typer.Typer(
    help="Train a judge, measure one against people, audit a run.",
    no_args_is_help=True,
    epilog=epilog("judges"),
)
app.add_typer(prompts, name="prompts")
app.add_typer(judges, name="judges")

VERBS = {
    "init": "Write a first recipe for a model: looks at it, the machine and your prompts, and says why each choice.",
    "run": "Run a recipe from the base model to the report; done stages are not done again.",
    "plan": "Say what running a recipe will take: memory and time of each stage, and what is done already.",
    "recipes": "List the recipes that come along, or print one to start your own from.",
    "sweep": "Search over a recipe's options; the same command goes on where it was.",
    "refine": "Stage 1 alone: contrastive refinement of the first LAYER layers.",
    "align": "Stage 2 alone: supervised safety fine-tuning on prompts with replies.",
    "evaluate": "Let one model reply to prompt sets, and show what it refuses.",
    "diagnose": "Show why a model refuses too much, and which layer to refine; always in float32, without training.",
    "compare": "Compare evaluations of the same prompts: rates, paired tests, equal safety.",
    "report": "Write the HTML report of a run again.",
    "export": "Export the replies of a run: logs for `inspect view`, a table, or a dataset on the hub.",
    "publish": "Publish a method of a run with a model card that says what was measured, and what was not.",
    "chat": "Talk to a model; each reply comes with its rejection probability.",
}
PROMPTS_VERBS = {
    "show": "Show some prompts of a set.",
    "check": "Look for duplicates, split leaks and label leaks in sets that are to be used together.",
    "split": "Split a set so that no frame, key word, partner or repeated text stands on two sides.",
    "generate": "Generate seemingly toxic prompts: seeds, rewrites, moderation by majority. Goes on where it was.",
    "export": "Write prompt sets as a task of inspect_ai, for its models and its viewer.",
}
JUDGES_VERBS = {
    "calibrate": "Show how a judge agrees with people, by model and by type of prompt.",
    "train": "Train a judge on labelled completions: those that come along, people's where they are at hand, your own.",
    "audit": "Label replies of a run, one key each, and see its rates as people see them; stops and goes on at any time.",
}

for verb, line in VERBS.items():
    add_verb(app, verb, line)
add_verb(
    prompts,
    "prompts.list_sets",
    "List the built-in and the public prompt sets, and how to get them.",
    name="list",
)
for verb, line in PROMPTS_VERBS.items():
    add_verb(prompts, f"prompts.{verb}", line)
for verb, line in JUDGES_VERBS.items():
    add_verb(judges, f"judges.{verb}", line)


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
    try:
        _run()
    except SystemExit as end:
        if ranks.several():
            ranks.leave(end.code if isinstance(end.code, int) else 0)
        raise


def _run() -> None:
    _open_what_is_closed()
    _write_what_can_be_written()
    try:
        if ranks.several():
            _as_one_of_several()
        else:
            app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            _end_of_pipe()
        if end.code == INTERRUPTED:  # typer says nothing of a Ctrl-C
            sys.stderr.write("discern: interrupted; the same command goes on from here.\n")
        raise
    except BrokenPipeError:
        _end_of_pipe()
    except Exception as error:
        said = _in_a_sentence(error)
        if not ranks.is_to_tell():
            sys.exit(1 if said is None else 2)
        if said is None:
            raise
        sys.stderr.write(f"discern: {said}\n")
        sys.exit(2)


def _as_one_of_several() -> None:
    """Be the command, or wait for the stages that it trains."""
    from discernment.cli.console import prepare_process

    prepare_process()
    # Each process would warn of what it had to look for in a mixture of experts and did not find in another model.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not ranks.is_first():
        logging.disable(logging.ERROR)
    ranks.take_part(app)
    sys.exit(0)


def _end_of_pipe() -> NoReturn:
    from discernment.cli.console import end_of_pipe

    end_of_pipe()


def _open_what_is_closed() -> None:
    """Throw away what is written to a stream that the caller closed, as some job runners do."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115


def _write_what_can_be_written() -> None:
    """Put a question mark where the encoding of the terminal or the pipe lacks a character, instead of failing."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


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
    if ranks.has_lost_another(error):
        return "another process of this run has ended; the same command goes on from what is there."
    return None


if __name__ == "__main__":
    main()
