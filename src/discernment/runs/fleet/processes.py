"""Tasks in processes of this machine: loky's, as joblib's are, but one by one, so that a killed one takes no other along."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from discernment.runs.fleet.engine import Asked, Engine, Found, Killed, Workers

SECONDS_BETWEEN_LOOKS = 2.0
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries read, when they are loaded, of how many threads they may use."""


class Processes(Engine):
    """Processes of this machine, which share its cores out among them."""

    name: ClassVar[str] = "local"

    def start(self, jobs: int, folder: Path) -> Workers:
        """Get ready for tasks; a process is begun when there is one for it."""
        return _Processes(jobs)


class _Processes(Workers):
    def __init__(self, jobs: int) -> None:
        from joblib import cpu_count

        self._environment = dict.fromkeys(THREADS, str(max(1, cpu_count() // jobs)))
        self._begun: list[Any] = []
        self._idle: list[Any] = []

    def do(self, work: Callable[[Asked], Found], asked: Asked) -> Found:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        try:
            process = self._idle.pop()
        except IndexError:
            process = self._begin()
        try:
            found: Found = process.submit(work, asked).result()
        except TerminatedWorkerError as error:
            raise Killed from error
        self._idle.append(process)
        return found

    def _begin(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        process = ProcessPoolExecutor(
            max_workers=1, env=self._environment, initializer=_end_with_the_asking_process
        )
        self._begun.append(process)
        return process

    def stop(self) -> None:
        for process in self._begun:
            process.shutdown(kill_workers=process not in self._idle)


def _end_with_the_asking_process() -> None:
    """Nobody would take what a process goes on to do whose asking one was killed."""
    asking, forever = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == asking:
            forever.wait(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
