"""The methods and seeds of a run as tasks side by side, each in a process of its own.

The tasks leave stages and nothing else: what a run writes of them is written by the process that asked for them, which
goes through the whole recipe afterwards and finds every stage done. Two tasks that share a stage do it once, because each
stage is claimed while it is made. What a process that died leaves behind is what an interrupted stage leaves.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from discernment.errors import DiscernmentError
from discernment.runs.preparation import Prepared, prepare
from discernment.runs.recipe import Recipe
from discernment.runs.stages import Reporter, locks_of

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often processes are started again after one was killed; what is left then, the asking process does itself."""

SECONDS_BETWEEN_LOOKS = 2.0
OURS = logging.getLogger("discernment")

_watches: list[threading.Thread] = []
_prepared: dict[str, Prepared] = {}
"""What this process read for a recipe, for its next task."""


class Task(NamedTuple):
    """A method of a run.

    Attributes:
        directory: The run's directory.
        recipe: Its recipe, of a single seed.
        method: What tables call the method.
    """

    directory: Path
    recipe: Recipe
    method: str

    @property
    def name(self) -> str:
        """The task in the words of messages."""
        return f"{self.recipe.name} {self.method}"


def do_side_by_side(runs: Mapping[Path, Recipe], jobs: int, reporter: Reporter, *, verify: bool) -> int:
    """Do the stages of runs in several processes.

    Args:
        runs: The recipe of each run's directory, each of a single seed.
        jobs: How many processes; the processor's cores are shared out among them.
        reporter: Hears which tasks are done; `reporter.of_task` hears of their stages.
        verify: As in `run_recipe`.

    Returns:
        How many stages were done.

    Raises:
        DiscernmentError: The first that a task raises, when what the others are at has ended; no other is begun.
    """
    tasks = [
        Task(directory, recipe, entry.label) for directory, recipe in runs.items() for entry in recipe.methods
    ]
    left, ran = list(tasks), 0
    for attempt in range(1, ATTEMPTS + 1):
        if not left:
            break
        try:
            for task, stages in _started(tuple(left), jobs, reporter, verify=verify):
                left.remove(task)
                ran += stages
                reporter.progress("methods done", len(tasks) - len(left), len(tasks))
        except _killed():
            how = "begun anew" if attempt < ATTEMPTS else "done one after the other"
            logger.warning("A process was killed; %d of %d methods are %s.", len(left), len(tasks), how)
    return ran


def _started(
    tasks: Sequence[Task], jobs: int, reporter: Reporter, *, verify: bool
) -> Iterator[tuple[Task, int]]:
    """Each task and how many stages it did, as they end."""
    from joblib import Parallel, cpu_count, delayed, parallel_config

    failed: list[DiscernmentError] = []
    jobs = min(jobs, len(tasks))
    threads = max(1, cpu_count() // jobs)
    levels = (logging.root.level, OURS.level)
    with parallel_config("loky", inner_max_num_threads=threads):
        # Each is taken from here when a process is free for it.
        found = Parallel(n_jobs=jobs, pre_dispatch="n_jobs", return_as="generator_unordered")(
            delayed(_do)(number, task, reporter.of_task(task.name), levels, verify=verify)
            for number, task in enumerate(tasks)
            if not failed
        )
        for number, ran, error in found:
            if error is None:
                yield tasks[number], ran
            else:
                failed.append(error)
    if failed:
        raise failed[0]


def _killed() -> type[Exception]:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    killed: type[Exception] = TerminatedWorkerError
    return killed


def _do(
    number: int, task: Task, reporter: Reporter, levels: tuple[int, int], *, verify: bool
) -> tuple[int, int, DiscernmentError | None]:
    """Do the stages of a task, in a process of its own that says what the asking one would.

    Returns:
        The number, how many stages were done, and what a user has to mend; raised, it would end the other processes.
    """
    _end_with_the_asking_process()
    logging.basicConfig(level=levels[0], format="%(message)s")
    OURS.setLevel(levels[1])
    from discernment.runs.run import do_method

    text = task.recipe.to_yaml()
    try:
        if text not in _prepared:
            _prepared.clear()
            _prepared[text] = prepare(task.recipe)
        with _a_device(locks_of(task.directory / "stages")):
            ran = do_method(
                task.recipe, _prepared[text], task.directory, task.method, reporter, verify=verify
            )
    except DiscernmentError as error:
        return number, 0, error
    return number, ran, None


def _end_with_the_asking_process() -> None:
    """Nobody would take what a process goes on to do whose asking one was killed."""
    if _watches:
        return
    asking, forever = os.getppid(), threading.Event()

    def watch() -> None:
        while os.getppid() == asking:
            forever.wait(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    _watches.append(threading.Thread(target=watch, daemon=True))
    _watches[0].start()


@contextmanager
def _a_device(locks: Path) -> Iterator[None]:
    """Work on an accelerator that no other task works on, where there are several."""
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    locks.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for device in range(count):
            try:
                held.enter_context(FileLock(locks / f"device-{device}.lock", timeout=0))
            except Timeout:
                continue
            torch.accelerator.set_device_index(device)
            break
        yield
