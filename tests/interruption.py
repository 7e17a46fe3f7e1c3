"""A command that is interrupted from outside, in the middle of its work however fast or busy the machine is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

# The process waits for the signal where its first replies are to be written. A shell lets what it runs in the
# background ignore the signal, and children inherit that.
PROGRAM = """
import signal, sys
from discernment.cli.main import main

waited = []

def wait(event, arguments):
    if event == "open" and str(arguments[0]).endswith("completions.jsonl") and not waited:
        waited.append(event)
        print("waiting", flush=True)
        signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.addaudithook(wait)
main()
"""


def interrupt(folder: Path, *arguments: str) -> tuple[int, list[str], str]:
    """Give `discern ARGUMENTS` in a folder and press Ctrl-C during its first evaluation.

    Returns:
        The exit code, the lines printed before the interruption, and what stands in the error output.
    """
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            if line == "waiting\n":
                break
            printed.append(line)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    return process.returncode, printed, error
