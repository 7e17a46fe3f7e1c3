"""The command in several processes at once, as a launcher starts them, without the seconds that each would need to import."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from accelerate.state import AcceleratorState
from torch.distributed import TCPStore

# So that each process finds them imported.
import discernment.cli.align
import discernment.cli.evaluate
import discernment.cli.refine
import discernment.reporting.tables.methods
import discernment.runs.run
import discernment.training.contrastive_trainer
import discernment.training.history
import discernment.training.supervised_trainer  # noqa: F401

LIMIT = 100
"""Seconds after which a process is ended by a signal."""


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: Its exit code; minus the number of the signal that has ended it.
        out: What it printed.
        error: What it printed of errors.
    """

    code: int
    out: str
    error: str


def launched(
    folder: Path,
    *arguments: str,
    processes: int = 2,
    before: Callable[[int], object] = lambda rank: None,
    **environment: str,
) -> list[Ended]:
    """Give `discern ARGUMENTS` in several processes, and wait for all of them.

    Args:
        folder: Where they work, and leave what they print.
        *arguments: The command.
        processes: How many.
        before: What each does first; it is told its number.
        **environment: What more their environment holds.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # it outlives each of the processes
        "TORCHELASTIC_RESTART_COUNT": 0,
        "OMP_NUM_THREADS": 1,
        **environment,
    }
    pids = []
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        pid = os.fork()
        if pid == 0:
            _be(folder, rank, arguments, {**shared, **own}, before)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    texts = [[_printed(folder / f"{name}-{rank}") for name in ("out", "error")] for rank in range(processes)]
    return [Ended(code, *text) for code, text in zip(codes, texts, strict=True)]


def _printed(file: Path) -> str:
    """What was printed, but for a warning that the command turns off where torch is not imported yet."""
    return "".join(line for line in file.open() if "find_unused_parameters=True was specified" not in line)


def die_at(place: str, event: str = "os.mkdir", time: int = 1) -> None:
    """Let this process be killed where it is about to do something with a file for the so many-th time.

    Args:
        place: What the file's path ends with.
        event: What it is about to do, as an audit event.
        time: The so many-th time.
    """
    seen = []

    def look(happening: str, arguments: tuple[object, ...]) -> None:
        if happening == event and str(arguments[0]).endswith(place):
            seen.append(place)
            if len(seen) == time:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def _be(
    folder: Path,
    rank: int,
    arguments: tuple[str, ...],
    environment: dict[str, object],
    before: Callable[[int], object],
) -> None:
    """Be one of the processes, and end."""
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)
        os.environ.update({name: str(value) for name, value in environment.items()})
        os.chdir(folder)
        for descriptor, name in ((1, "out"), (2, "error")):
            with Path(f"{name}-{rank}").open("wb") as file:
                os.dup2(file.fileno(), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["discern", *arguments]
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # of what this process trained before the fork
        before(rank)
        from discernment.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
