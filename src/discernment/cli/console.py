"""What the command line shows: lines, tables, and how far a long work is."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from discernment.errors import RecipeError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from discernment.cost import StageCost

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
console = Console(highlight=False)


def say(text: str, style: str = "") -> None:
    """Print untrusted text: no markup, control characters shown by name."""
    console.print(_untrusted(text, style))


def caution(text: str) -> None:
    """Print a caution, which may hold untrusted text."""
    console.print(Text.assemble(("Caution:", "yellow"), " ", _untrusted(text)))


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
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in whole
        )
    for row in rows:
        table.add_row(*map(_untrusted, row))
    return table


def _untrusted(text: str, style: str = "") -> Text:
    from discernment.reporting.text import visible

    return Text(visible(text), style=style)


class ConsoleReporter:
    """Prints a line for every stage and a bar for every long count; use it as a context manager."""

    def __init__(self) -> None:
        from rich import progress

        self._bars = progress.Progress(
            progress.TextColumn("  {task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._task is not None:
            self._bars.stop()

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Print that a stage begins, or that its result is there already."""
        who = f"[bold]{escape(owner)}[/bold] " if owner else ""
        console.print(f"{who}{name}" + (" [dim](done before)[/dim]" if reused else " ..."))

    def progress(self, what: str, done: int, of: int) -> None:
        """Move the bar of `what`; where there is no terminal, print a line every tenth of the way."""
        if not console.is_terminal:
            tenth = 10 * done // max(1, of)
            if what != self._what or tenth > self._shown:
                console.print(f"  {what}: {done} of {of}")
            self._what, self._shown = what, tenth
            return
        if self._task is None or what != self._what:
            self._bars.start()
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(what, total=of)
            self._what = what
        self._bars.update(self._task, completed=done)
        if done >= of:
            self._bars.remove_task(self._task)
            self._bars.stop()
            self._task, self._what = None, ""

    def of_task(self, name: str) -> TaskReporter:
        """Lines alone: bars of several processes would overwrite each other."""
        return TaskReporter(name)


class TaskReporter:
    """Prints a line for every stage of a task that runs in another process."""

    def __init__(self, task: str) -> None:
        self.task = task

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Print that a stage begins; what is there already goes without saying."""
        if not reused:
            console.print(f"[bold]{escape(self.task)}[/bold] {name} ...")

    def progress(self, what: str, done: int, of: int) -> None:
        """Say nothing."""

    def of_task(self, name: str) -> Self:
        """Itself: a task has no tasks."""
        return self


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
    logging.basicConfig(level=level, format="%(message)s")
    logging.getLogger("discernment").setLevel(_log_level("info"))


def train_into(out: Path, stage: str, work: Callable[..., StageCost], inputs: Mapping[str, Any]) -> None:
    """Run a stage that leaves a model in `out`, and say where it is."""
    from discernment.runs.stages import run_into

    with ConsoleReporter() as reporter:
        ran = run_into(out, stage, work, inputs, reporter)
    place = out / "model" if (out / "model").is_dir() else out  # an adapter may be all that is kept
    say(f"{'Model' if ran else 'Nothing to do; the model is there'}: {place}")
