"""A disk so small that it is soon full, where the tests run as root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system in memory, in a folder, that can be made larger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        made = self._mount("-t", "tmpfs", "tmpfs", "-o", "size=8k")
        if made.returncode:
            pytest.skip(f"a small disk cannot be made here: {made.stderr.strip()}")

    def _mount(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["mount", *arguments, str(self.folder)], capture_output=True, text=True, check=False
        )

    def resize(self, size: int) -> None:
        """Give it another size in bytes."""
        assert self._mount("-o", f"remount,size={size}").returncode == 0

    def unmount(self) -> None:
        """Take it away, also where a failed write still holds a file of it open."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk of 8 KiB in a new folder; skips the test where there can be none."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    made = SmallDisk(folder)
    try:
        yield made
    finally:
        made.unmount()
