"""Tasks on the machines of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from discernment.errors import RunError
from discernment.runs.fleet.engine import Asked, Engine, Found, Killed, Workers


class RayCluster(Engine):
    """The cluster that `RAY_ADDRESS` names or that this machine is part of; one of this machine alone where there is none.

    Ray's own tasks, not joblib's backend for Ray (`docs/decisions/0009-tasks-of-ray.md`).
    """

    name: ClassVar[str] = "ray"
    package: ClassVar[str] = "ray"

    def start(self, jobs: int, folder: Path) -> Workers:
        """Join the cluster, or begin one."""
        self.check()
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every cluster
        joined = ray.is_initialized()
        if not joined:
            try:
                ray.init(include_dashboard=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                address = os.environ.get("RAY_ADDRESS", "of this machine")
                raise RunError(
                    f"The Ray cluster {address} cannot be joined ({error}); start it with `ray start`, or take RAY_ADDRESS "
                    "away to have one of this machine alone."
                ) from error
        return _RayTasks(ray, jobs, leave=not joined)


class _RayTasks(Workers):
    def __init__(self, ray: Any, jobs: int, *, leave: bool) -> None:
        self._ray = ray
        self._leave = leave
        self._begun: set[Any] = set()
        self._share = _share(ray.nodes(), jobs)

    def do(self, work: Callable[[Asked], Found], asked: Asked) -> Found:
        from ray.exceptions import RayError, RayTaskError

        # Whoever asked counts how often a task is begun, and says so.
        task = self._ray.remote(work).options(max_retries=0, **self._share).remote(asked)
        self._begun.add(task)
        try:
            found: Found = self._ray.get(task)
        except RayTaskError:  # what the task raised
            raise
        except RayError as error:  # a process or a machine is gone
            raise Killed from error
        finally:
            self._begun.discard(task)
        return found

    def stop(self) -> None:
        for task in tuple(self._begun):
            self._ray.cancel(task, force=True)
        if self._leave:
            self._ray.shutdown()


def _share(machines: list[dict[str, Any]], jobs: int) -> dict[str, float]:
    """What a task gets of a cluster: its share of the cores, never more than the smallest machine has, and a device."""
    resources = [machine["Resources"] for machine in machines if machine["Alive"]]
    cores = [int(r["CPU"]) for r in resources if r.get("CPU", 0) >= 1]
    return {
        "num_cpus": max(1, min([sum(cores) // jobs, *cores])),
        "num_gpus": 1 if any(r.get("GPU", 0) >= 1 for r in resources) else 0,
    }
