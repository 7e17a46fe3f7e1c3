"""What the command line shows while it works."""

from __future__ import annotations

import logging
import os
import warnings
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["ConsoleReporter", "console", "prepare_process"]

console = Console(highlight=False)


class ConsoleReporter:
    """Prints a line for every stage and a bar for every long count; use it as a context manager."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


def prepare_process() -> None:
    """Leave the screen to our own messages (`DISCERNMENT_LOG=info` brings the libraries' back) and keep freed memory."""
    level = os.environ.get("DISCERNMENT_LOG", "error").upper()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", level.lower())
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.basicConfig(level=level, format="%(message)s")
    logging.getLogger("discernment").setLevel(os.environ.get("DISCERNMENT_LOG", "info").upper())
    import datasets
    from transformers.utils import logging as transformers_logging

    from discernment.runs.resources import keep_freed_memory

    keep_freed_memory()
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
