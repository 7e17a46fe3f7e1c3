"""The methods and seeds of a run as tasks side by side, each in a process of its own, here or on other machines.

The tasks leave stages and nothing else: what a run writes of them is written by the process that asked for them, which
goes through the whole recipe afterwards and finds every stage done. Two tasks that share a stage do it once, because each
stage is claimed while it is made. What a process that died leaves behind is what an interrupted stage leaves.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from discernment.errors import DiscernmentError, RunError
from discernment.files import content_hash
from discernment.runs.claims import locks_of
from discernment.runs.fleet.dispatch import Fleet
from discernment.runs.fleet.engine import Engine
from discernment.runs.fleet.processes import Processes
from discernment.runs.preparation import Prepared, prepare
from discernment.runs.recipe import Recipe
from discernment.runs.stages import Reporter

OURS = logging.getLogger("discernment")
JOBS = ".jobs"
"""Beside the stages' directory: what an engine keeps for itself."""
ROCR = "ROCR_VISIBLE_DEVICES"
VISIBLE = ("CUDA_VISIBLE_DEVICES", ROCR, "HIP_VISIBLE_DEVICES")

_prepared: dict[str, Prepared] = {}
"""What this process read for a recipe, for its next task."""
_held: list[FileLock] = []
"""Of the accelerator that this process keeps for itself."""


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


class _Asked(NamedTuple):
    """What the process of a task is given: the task, who hears of it, and how the asking process is set up."""

    task: Task
    reporter: Reporter
    verify: bool
    levels: tuple[int, int]
    place: str


class _Outcome(NamedTuple):
    """How many stages were done, and what a user has to mend: raised, it would lose its class in other engines."""

    ran: int
    error: DiscernmentError | None = None


def do_side_by_side(
    runs: Mapping[Path, Recipe],
    jobs: int,
    reporter: Reporter,
    *,
    verify: bool,
    engine: Engine | None = None,
) -> int:
    """Do the stages of runs in several processes.

    Args:
        runs: The recipe of each run's directory, each of a single seed.
        jobs: How many tasks are done at the same time.
        reporter: Hears which tasks are done; `reporter.of_task` hears of their stages.
        verify: As in `run_recipe`.
        engine: Starts the processes; processes of this machine by default.

    Returns:
        How many stages were done.

    Raises:
        DiscernmentError: The first that a task raises, when what the others are at has ended; no other is begun.
    """
    tasks = tasks_of(runs)
    done = ran = 0
    with fleet_for(next(iter(runs)), engine, min(jobs, len(tasks))) as fleet:

        def work(task: Task) -> int | None:
            return do_task(fleet, task, reporter, verify=verify)

        for _, stages in fleet.as_they_end(work, tasks):
            if stages is not None:
                done += 1
                ran += stages
                reporter.progress("methods done", done, len(tasks))
    return ran


def goes_elsewhere(jobs: int, engine: Engine | None) -> bool:
    """Whether tasks are done in other processes."""
    return jobs > 1 or not (engine is None or isinstance(engine, Processes))


def fleet_for(run: Path, engine: Engine | None, jobs: int) -> Fleet:
    """A fleet for a run, or for runs that share their stages with it."""
    return Fleet(engine or Processes(), jobs, locks_of(run / "stages").with_name(JOBS))


def tasks_of(runs: Mapping[Path, Recipe]) -> list[Task]:
    """The tasks of runs, by their directories."""
    return [
        Task(directory, recipe, entry.label) for directory, recipe in runs.items() for entry in recipe.methods
    ]


def do_task(fleet: Fleet, task: Task, reporter: Reporter, *, verify: bool) -> int | None:
    """Do the stages of a task in another process, and wait for them.

    Returns:
        How many stages were done; None if the process was killed again and again.

    Raises:
        DiscernmentError: What the task raises.
    """
    levels = (logging.root.level, OURS.level)
    asked = _Asked(task, reporter.of_task(task.name), verify, levels, str(Path.cwd()))
    outcome = fleet.do(task.name, _do, asked)
    if outcome is None:
        return None
    if outcome.error is not None:
        raise outcome.error
    return outcome.ran


def _do(asked: _Asked) -> _Outcome:
    """Do the stages of a task, in a process of its own that says what the asking one would."""
    try:
        os.chdir(asked.place)  # where the paths of a recipe start
    except OSError:
        error = f"The machine {platform.node()} does not see {asked.place}; let all machines share that disk."
        return _Outcome(0, RunError(error))
    logging.basicConfig(level=asked.levels[0], format="%(message)s")
    OURS.setLevel(asked.levels[1])
    from discernment.runs.run import do_method

    task = asked.task
    text = task.recipe.to_yaml()
    try:
        _take_a_device(locks_of(task.directory / "stages"))
        if text not in _prepared:
            _prepared.clear()
            _prepared[text] = prepare(task.recipe)
        ran = do_method(
            task.recipe,
            _prepared[text],
            task.directory,
            task.method,
            asked.reporter,
            verify=asked.verify,
        )
    except DiscernmentError as mistake:
        return _Outcome(0, mistake)
    return _Outcome(ran)


def _take_a_device(locks: Path) -> None:
    """Keep an accelerator for this process that no other one has, where it sees several and has none yet.

    It is made the only one that the process sees: trainers take the first of those, whichever is the current one.
    """
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if count < 2 or _held:
        return
    # The first device of another machine, or of a job that is shown others, is another one.
    shown = {name: devices for name in VISIBLE if (devices := os.environ.get(name))}
    # ROCR's are counted before those of the others, which count on among them.
    inner = {name: devices for name, devices in shown.items() if name != ROCR} or shown
    seen = content_hash([platform.node(), *(os.environ.get(name) for name in VISIBLE)])[:12]
    locks.mkdir(parents=True, exist_ok=True)
    for device in range(count):
        lock = FileLock(locks / f"device-{seen}-{device}.lock", timeout=0)
        with suppress(Timeout):
            lock.acquire()
            _held.append(lock)
            for name, devices in (inner or {VISIBLE[0]: ",".join(map(str, range(count)))}).items():
                os.environ[name] = devices.split(",")[device].strip()
            if str(torch.accelerator.current_accelerator()) != "cuda":  # which go by other variables
                torch.accelerator.set_device_index(device)
            break
