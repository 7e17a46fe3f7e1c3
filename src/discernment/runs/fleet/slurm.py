"""Tasks as jobs of SLURM, which submitit hands in."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from discernment.errors import RunError
from discernment.runs.fleet.engine import Asked, Engine, Found, Killed, Workers

SECONDS_BETWEEN_LOOKS = 1.0


class Slurm(Engine):
    """A job for each task. The run's directory has to lie on a disk that all machines share."""

    name: ClassVar[str] = "slurm"
    package: ClassVar[str] = "submitit"

    partition: str | None = Field(None, description="Partition; the cluster's default without it.")
    account: str | None = Field(None, description="Account that the time is taken from.")
    minutes: int = Field(
        1440, ge=1, description="Limit of a job; one that reaches it is handed in again and goes on."
    )
    gpus: int = Field(0, ge=0, description="GPUs of a job.")
    cpus: int | None = Field(None, ge=1, description="Cores of a job.")
    memory: int | None = Field(None, ge=1, description="Memory of a job in GB.")
    executor: Literal["slurm", "local"] = Field(
        "slurm", description="`local` tries all of it on this machine, without SLURM."
    )

    def start(self, jobs: int, folder: Path) -> Workers:
        """See whether there is such a cluster."""
        self.check()
        import submitit

        for_all = {"timeout_min": self.minutes, "gpus_per_node": self.gpus}
        for_some = {
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory,
            "slurm_partition": self.partition,
            "slurm_account": self.account,
        }
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.executor)
        except RuntimeError as error:
            raise RunError(
                f"There is no SLURM on this machine ({error}); give the command where `srun` is, or try `--slurm executor=local`."
            ) from error
        given = {key: value for key, value in for_some.items() if value is not None}
        executor.update_parameters(name="discern", **for_all, **given)
        return _Jobs(executor)


class _Jobs(Workers):
    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._stopped = threading.Event()

    def do(self, work: Callable[[Asked], Found], asked: Asked) -> Found:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        job = self._submit(work, asked)
        said = _Said(Path(job.paths.stderr))
        while not job.done():
            said.pass_on()
            if self._stopped.wait(SECONDS_BETWEEN_LOOKS):
                job.cancel(check=False)
                raise Killed
        said.pass_on()
        try:
            found: Found = job.result()
        except FailedJobError:  # what the task raised; it is a subclass of the next
            raise
        except UncompletedJobError as error:
            raise Killed from error
        return found

    def _submit(self, work: Callable[[Asked], Found], asked: Asked) -> Any:
        from submitit.core.utils import FailedJobError

        try:
            return self._executor.submit(work, asked)
        except FailedJobError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(f"SLURM takes no job ({reason}); see to the options of `--slurm`.") from error

    def stop(self) -> None:
        self._stopped.set()


class _Said:
    """What a job writes to its error output, which submitit keeps in a file, passed on to the one here."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0

    def pass_on(self) -> None:
        """Print the whole lines that have come since."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                lines, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        self._read += len(lines) + len(newline)
        print((lines + newline).decode(errors="replace"), end="", file=sys.stderr, flush=True)
