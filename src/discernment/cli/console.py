"""What the command line shows: results on standard output, all else on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discernment.errors import RecipeError

if TYPE_CHECKING:
    from discernment.cost import StageCost
    from discernment.evaluation.results import Results

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
BROKEN_PIPE = 141
"""What a shell says of a command that SIGPIPE ended."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """End without a word when nobody reads on, as other tools do."""
        end_of_pipe()


console = _Console(highlight=False)
"""For results."""
notices = _Console(highlight=False, stderr=True)
"""For progress, and for what only people read."""


def end_of_pipe() -> NoReturn:
    """End the process whose reader has gone; nothing is written any more, not even by the interpreter at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    raise SystemExit(BROKEN_PIPE)


def say(text: str, style: str = "") -> None:
    """Print a result of untrusted text: no markup, control characters shown by name."""
    console.print(_untrusted(text, style), soft_wrap=not console.is_terminal)


def notice(text: str, style: str = "") -> None:
    """Print what is no result, such as where files are, unless `--quiet` is given."""
    notices.print(_untrusted(text, style), soft_wrap=not notices.is_terminal)


def caution(text: str) -> None:
    """Print a caution, which may hold untrusted text, whether or not `--quiet` is given."""
    _tell(Text.assemble(("Caution:", "yellow"), " ", _untrusted(text)), soft_wrap=not notices.is_terminal)


def _tell(text: Text, *, soft_wrap: bool) -> None:
    """Print on standard error, whether or not `--quiet` is given."""
    quiet, notices.quiet = notices.quiet, False
    notices.print(text, soft_wrap=soft_wrap)
    notices.quiet = quiet


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, or tab-separated where there is none."""
    from discernment.reporting.tables.terminal import fitted, tab_separated

    if not console.is_terminal:
        _write(tab_separated(table))
        return
    for part in fitted(table, console.width):
        console.print(part)


def show_results(results: Results, *, as_json: bool) -> None:
    """Print what evaluations found: the table, what is not in it, and the answer; or all of it as JSON."""
    from discernment.reporting.tables.methods import results_table

    if as_json:
        print_json(results.model_dump(mode="json"))
        return
    show(results_table(results))
    for left_out in results.left_out:
        say(left_out.words)
    say(results.finding)


def print_json(document: Any) -> None:
    """Print a document as JSON."""
    _write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _write(text: str) -> None:
    """Write text as it is: rich makes spaces of tabs."""
    sys.stdout.write(text)
    sys.stdout.flush()


def plain_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Table:
    """A table of untrusted text without lines; columns in `right` are set there, those in `whole` are not wrapped."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in header:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in whole)
    for row in rows:
        table.add_row(*map(_untrusted, row))
    return table


def _untrusted(text: str, style: str = "") -> Text:
    from discernment.reporting.text import visible

    return Text(visible(text), style=style)


class _LogLines(logging.Handler):
    """Prints the log above a bar that is being shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, whether or not `--quiet` is given."""
        _tell(Text(self.format(record)), soft_wrap=True)


def _log_level(default: str) -> str:
    level = (os.environ.get("DISCERNMENT_LOG") or default).upper()
    if level not in LOG_LEVELS:
        known = ", ".join(LOG_LEVELS).lower()
        raise RecipeError(
            f"DISCERNMENT_LOG is {level.lower()!r}, which is no log level; set it to one of {known}."
        )
    return level


def prepare_process() -> None:
    """Leave the screen to our own messages (`DISCERNMENT_LOG=info` brings the libraries' back)."""
    level = _log_level("error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", level.lower())
    for library in ("HUB", "DATASETS"):  # transformers asks what the hub's library does
        os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # of the processes that are started
    logging.basicConfig(level=level, format="%(message)s", handlers=[_LogLines()])
    logging.getLogger("discernment").setLevel(_log_level("warning" if notices.quiet else "info"))


def train_into(out: Path, stage: str, work: Callable[..., StageCost], inputs: Mapping[str, Any]) -> None:
    """Run a stage that leaves a model in `out`, and say where it is."""
    from discernment.cli.reporter import ConsoleReporter
    from discernment.runs.stages import run_into

    with ConsoleReporter() as reporter:
        ran = run_into(out, stage, work, inputs, reporter)
    place = out / "model" if (out / "model").is_dir() else out  # an adapter may be all that is kept
    say(f"{'Model' if ran else 'Nothing to do; the model is there'}: {place}")
