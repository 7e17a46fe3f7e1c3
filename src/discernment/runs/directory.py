"""A directory for results: made, and kept from other processes while one works in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from discernment.errors import RunError

__all__ = ["claim"]


@contextmanager
def claim(directory: Path, kind: str) -> Iterator[None]:
    """Make a directory and keep other processes out of it.

    Args:
        directory: The directory.
        kind: What it is for, such as `run`; names the lock file, and stands in messages.

    Raises:
        RunError: If it cannot be made, or is in use.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The {kind} directory {directory} cannot be made ({error.strerror}); name another."
        ) from error
    lock = FileLock(directory / f"{kind}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"The {kind} directory {directory} is in use by another process; wait for it or name another."
        ) from None
    try:
        yield
    finally:
        lock.release()
