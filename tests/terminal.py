"""Commands as they run in a terminal of 80 columns, and with a pipe that nobody reads."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

DISCERN = "import sys; sys.argv[0] = 'discern'; from discernment.cli.main import main; main()"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)[0-7][;m]")


def in_terminal(*arguments, code=DISCERN, columns=80, **environment):
    """Give a command in a terminal: its exit code and all that it writes there, escapes included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    left_out = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    written = bytearray()
    try:
        while some := os.read(ours, 65536):
            written += some
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return process.wait(), written.decode().replace("\r\n", "\n")


def without_reader(*arguments):
    """Give a command whose output nobody reads: its exit code and its errors."""
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-c", DISCERN, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    return found.returncode, found.stderr
