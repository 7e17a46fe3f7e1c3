"""Claims on stages, which keep every other process off one, on this machine or on another that shares the disk.

A claim is a file beside the stages that names its owner: host, process and time of start. It is fresh while its owner
lives: a thread touches it three times in `CLAIM_SECONDS`. A claim of a process of this machine that has ended is taken over
at once, one of another machine that has gone unrefreshed for `CLAIM_SECONDS`. Locks of the operating system would not do:
over machines some file systems keep them on each machine for itself, and others keep those of a machine that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLease

from discernment.disk import room

LOCKS = ".locks"
"""Beside the stages' directory: what shows other processes that a stage is being made."""
CLAIM_SECONDS = 120.0
"""All processes of a run must agree on it."""
SECONDS_BETWEEN_LOOKS = 0.5


class Claim:
    """A claim that this process holds on a stage."""

    def __init__(self, lease: SoftFileLease) -> None:
        self._lease = lease

    @property
    def holds(self) -> bool:
        """Whether it still does: one that stood still for too long may have been taken for dead."""
        owner = self._lease.owner
        return owner is not None and owner.token == self._lease.token


@contextmanager
def claimed(stage: Path) -> Iterator[Claim]:
    """Hold the claim on a stage, once every other process has let go of it.

    Args:
        stage: Where the stage's directory lies, or will lie.

    Raises:
        DiskError: If there is no room for the claim.
    """
    locks = locks_of(stage.parent)
    with room(locks):
        locks.mkdir(parents=True, exist_ok=True)
        lease = SoftFileLease(
            locks / f"{stage.name}.claim",
            lease_duration=CLAIM_SECONDS,
            poll_interval=SECONDS_BETWEEN_LOOKS,
        )
        lease.acquire()
    try:
        yield Claim(lease)
    finally:
        lease.release()


def locks_of(stages: Path) -> Path:
    """Where the claims on stages lie: beside their directory, also where runs share it by a link."""
    return stages.resolve().parent / LOCKS
