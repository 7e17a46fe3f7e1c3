"""A command that is interrupted from outside, in the middle of its work however fast or busy the machine is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# The process waits for the signal where a file is to be opened. A shell lets what it runs in the
# background ignore the signal, and children inherit that.
PROGRAM = """
import re, signal, sys
from discernment.cli.main import main

opened = []

def wait(event, arguments):
    if event == "open" and re.search({place!r}, str(arguments[0])):
        opened.append(event)
        if len(opened) == {time}:
            print("\\nwaiting", file=sys.stderr, flush=True)  # a bar may have left its line open
            signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(wait)
main()
"""


def interrupt(
    folder: Path,
    *arguments: str,
    place: str = r"completions\.jsonl$",
    time: int = 1,
    by: signal.Signals = signal.SIGINT,
) -> tuple[int, list[str], str]:
    """Give `discern ARGUMENTS` in a folder and press Ctrl-C during its first evaluation, or end it elsewhere otherwise.

    Args:
        folder: The folder.
        *arguments: The command.
        place: A regular expression: the command is interrupted before it opens a file whose path has it.
        time: Which such opening it is.
        by: The signal.

    Returns:
        The exit code, the lines of the error output before the interruption, and the text there after it.
    """
    command = [sys.executable, "-c", PROGRAM.format(place=place, time=time), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        printed = []
        for line in process.stderr:
            if line == "waiting\n":
                break
            printed.append(line)
        process.send_signal(by)
        _, error = process.communicate()
    return process.returncode, printed, error
