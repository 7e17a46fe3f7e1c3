"""Runs a command that ends when the one who started this ends, however that is: also by a signal that nobody can catch.

Started as `python -I lifeline.py GRACE COMMAND ...` with a pipe as its input, whose other end the starting process holds. When
that is closed, the command and all that it started are asked to end, and after `GRACE` seconds they are made to. It is a
script of its own and imports nothing that takes time.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main(grace: float, command: list[str]) -> int:
    """Run the command, and give its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603  our own

    def signal_all(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def end_with_the_other() -> None:
        while os.read(0, 1):  # not by a buffer, whose lock the interpreter would want at its end
            pass
        signal_all(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        signal_all(signal.SIGKILL)

    threading.Thread(target=end_with_the_other, daemon=True).start()
    code = child.wait()
    signal_all(signal.SIGKILL)  # what it has left running
    return code if code >= 0 else 128 - code  # as shells say of a signal


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
