"""A server of our own in another process, which is never left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from discernment.errors import ModelError

LIFELINE = Path(__file__).with_name("lifeline.py")
LOOPBACK = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 0.2
GRACE = 20.0
"""Seconds that a server gets to end by itself."""
TAIL = 1 << 16
"""Bytes at the end of what it printed in which its last line is looked for."""
SHOWN = 300


class Server:
    """A server in another process, for the time of a `with` block; it ends with this process, however that ends.

    Args:
        name: What messages call it.
        command: The command and its arguments.
        environment: All of its environment.
        log: Gets what it prints; gone after the block, unless something went wrong.
        grace: Seconds that it gets to end by itself.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        grace: float = GRACE,
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as printed:
            # In a session of its own: Ctrl-C is for us, who then end it.
            self._process = subprocess.Popen(  # noqa: S603  our own
                [sys.executable, "-I", str(LIFELINE), str(grace), *command],
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # which is what the server hangs on
        self._process.wait()
        if error is None:
            self.log.unlink(missing_ok=True)

    def wait_for(self, is_there: Callable[[], bool], seconds: float) -> None:
        """Wait until the server can be asked.

        Args:
            is_there: Whether it can.
            seconds: How long to wait.

        Raises:
            ModelError: If it ends before, or cannot be asked in time.
        """
        until = time.monotonic() + seconds
        while not is_there():
            self.check("before it could be asked")
            if time.monotonic() > until:
                raise ModelError(
                    f"{self.name} could not be asked within {seconds:.0f} seconds{self._last_words()}."
                )
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(SECONDS_BETWEEN_LOOKS)

    def check(self, when: str, seconds: float = 0.0) -> None:
        """Make sure that the server is still running.

        Args:
            when: At what time this is, for the message.
            seconds: How long to wait for its end, where it may be about to.

        Raises:
            ModelError: If it has ended.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        code = self._process.poll()
        if code is not None:
            raise ModelError(f"{self.name} ended {when} (exit code {code}){self._last_words()}.")

    def _last_words(self) -> str:
        """The last line that it printed, and where all of them are."""
        with self.log.open("rb") as printed:
            printed.seek(max(0, self.log.stat().st_size - TAIL))
            lines = printed.read().decode("utf-8", "replace").splitlines()
        shown = ("".join(letter for letter in line if letter.isprintable()).strip() for line in lines)
        last = next((line for line in reversed([*shown]) if line), None)
        if last is None:
            return " and printed nothing"
        return f"; the last line that it printed is {last[:SHOWN]!r}, and all of them are in {self.log}"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at present."""
    with socket.socket() as asked:
        asked.bind((LOOPBACK, 0))
        port: int = asked.getsockname()[1]
    return port
