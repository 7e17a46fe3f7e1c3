"""Tasks that are handed to an engine: so many at a time, each begun anew if its process is killed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from discernment.errors import DiscernmentError
from discernment.runs.fleet.engine import Asked, Engine, Found, Killed

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a task is begun whose process is killed; after that the asking process does what is left of it."""


class Fleet:
    """Hands tasks to an engine; use it as a context manager.

    Args:
        engine: Starts the processes.
        jobs: How many tasks are done at the same time.
        folder: As in `Engine.start`.
    """

    def __init__(self, engine: Engine, jobs: int, folder: Path) -> None:
        self.jobs = jobs
        self._workers = engine.start(jobs, folder)
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all processes; no task is begun anew any more."""
        self._stopped = True
        self._workers.stop()

    def do(self, name: str, work: Callable[[Asked], Found], asked: Asked) -> Found | None:
        """Call `work(asked)` in another process, and wait for it.

        Args:
            name: What messages call the task.
            work: A function that other processes can import.
            asked: What it is given.

        Returns:
            What it returns; None if its process was killed every time.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._workers.do(work, asked)
            except Killed:
                if self._stopped:
                    raise
                how = "begun anew" if attempt < ATTEMPTS else "left to this process"
                logger.warning("A process was killed; its task, %s, is %s.", name, how)
        return None

    def as_they_end(
        self, work: Callable[[Asked], Found], tasks: Iterable[Asked]
    ) -> Iterator[tuple[Asked, Found]]:
        """Call `work`, which calls `do`, for each task in a thread.

        A task is taken from `tasks` when a thread is free for it, and what ended before was dealt with.

        Yields:
            Each task with what came of it, as they end.

        Raises:
            DiscernmentError: The first that `work` raises, when what the others are at has ended; no other is begun.
        """
        left = iter(tasks)
        going: dict[Future[Found], Asked] = {}
        with ThreadPoolExecutor(self.jobs) as threads:
            try:
                while True:
                    for task in islice(left, self.jobs - len(going)):
                        going[threads.submit(work, task)] = task
                    if not going:
                        return
                    ended, _ = wait(going, return_when=FIRST_COMPLETED)
                    for future in ended:
                        task = going.pop(future)
                        yield task, future.result()
            except DiscernmentError:
                raise
            except BaseException:  # the threads would wait for the end of their tasks
                self.stop()
                raise
