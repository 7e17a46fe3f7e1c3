"""How far a long work is, on standard error: a line for every stage, and bars where there is a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from rich.markup import escape

from discernment.cli.console import notices
from discernment.cli.forecast import Forecast
from discernment.reporting.text import duration

if TYPE_CHECKING:
    from rich.progress import TaskID


class ConsoleReporter:
    """Prints a line for every stage, and shows how far the stage and the whole run are; use it as a context manager."""

    def __init__(self) -> None:
        from rich import progress

        self._bars = progress.Progress(
            progress.TextColumn("  {task.description}"),
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[left]}"),
            console=notices,
            transient=True,
        )
        self._forecast = Forecast([])
        self._whole: TaskID | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._shown = 0
        self._tasks_since: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bars.live.is_started:  # it prints an empty line otherwise
            self._bars.stop()

    @property
    def _has_bars(self) -> bool:
        return self._tasks_since is None and notices.is_terminal and not notices.quiet

    def plan(self, stages: Sequence[str]) -> None:
        """Show from now on how many of these stages are done, and how long the others will take."""
        self._forecast = Forecast(stages)
        if self._has_bars:
            left = _Left(lambda: self._forecast.remaining)
            self._whole = self._bars.add_task("all stages", total=len(stages), left=left)
            self._bars.start()

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Print that a stage begins, or that its result is there already."""
        self._forecast.begin(name, reused=reused)
        who = f"[bold]{escape(owner)}[/bold] " if owner else ""
        how = " [dim](done before)[/dim]" if reused else f" ...{self._place()}"
        notices.print(f"{who}{name}{how}", soft_wrap=not notices.is_terminal)
        if self._whole is not None:
            self._bars.update(self._whole, completed=self._forecast.begun - 1)

    def _place(self) -> str:
        """Where the stage stands in the run, in the words of a line."""
        of = len(self._forecast.stages)
        if not of or self._whole is not None:
            return ""
        left = str(_Left(lambda: self._forecast.remaining))
        return f" [dim](stage {self._forecast.begun} of {of}{left and ', '}{left})[/dim]"

    def progress(self, what: str, done: int, of: int) -> None:
        """Move the bar of `what`; where there is none, print a line every tenth of the way."""
        if not self._has_bars:
            tenth = 10 * done // max(1, of)
            if what != self._what or tenth > self._shown:
                notices.print(f"  {what}: {done} of {of}{self._left_of_tasks(done, of)}")
            self._what, self._shown = what, tenth
            return
        if self._task is None or what != self._what:
            self._bars.start()
            self._forget_task()
            self._task = self._bars.add_task(what, total=of, left="")
            task = self._bars.tasks[-1]
            self._bars.update(self._task, left=_Left(lambda: task.time_remaining))
            self._what = what
        self._bars.update(self._task, completed=done)
        if done >= of:
            self._forget_task()
            if self._whole is None:
                self._stop()

    def _left_of_tasks(self, done: int, of: int) -> str:
        """How long the tasks of other processes will take, by those that are done."""
        if self._tasks_since is None or not 0 < done < of:
            return ""
        seconds = (time.monotonic() - self._tasks_since) / done * (of - done)
        return f", {_Left(lambda: seconds)}"

    def _forget_task(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task, self._what = None, ""

    def of_task(self, name: str) -> TaskReporter:
        """Lines alone, and from now on none but lines here either: bars would overwrite what other processes print."""
        self._stop()
        self._whole = None
        if self._tasks_since is None:
            self._tasks_since = time.monotonic()
        return TaskReporter(name, quiet=notices.quiet)


class TaskReporter:
    """Prints a line for every stage of a task that runs in another process."""

    def __init__(self, task: str, *, quiet: bool = False) -> None:
        self.task = task
        self.quiet = quiet

    def plan(self, stages: Sequence[str]) -> None:
        """Say nothing."""

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Print that a stage begins; what is there already goes without saying."""
        if not (reused or self.quiet):
            notices.print(f"[bold]{escape(self.task)}[/bold] {name} ...", soft_wrap=not notices.is_terminal)

    def progress(self, what: str, done: int, of: int) -> None:
        """Say nothing."""

    def of_task(self, name: str) -> Self:
        """Itself: a task has no tasks."""
        return self


class _Left:
    """Seconds that are left, in the words of the moment when they are shown."""

    def __init__(self, seconds: Callable[[], float | None]) -> None:
        self.seconds = seconds

    def __str__(self) -> str:
        seconds = self.seconds()
        if seconds is None:
            return ""
        return f"about {f'{seconds:.0f} s' if seconds < 59.5 else duration(seconds)} left"
