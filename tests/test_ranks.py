"""Processes of one run: how one of them ends."""

import subprocess
import sys

ENDS = """
import atexit, sys, threading
from discernment import ranks
atexit.register(print, "at exit")
threading.Thread(target=threading.Event().wait).start()  # Python's own end would wait for it
sys.stdout.write("said ")
ranks.leave(3)
"""


def test_a_process_of_several_ends_with_all_that_it_said():
    ended = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "said at exit\n", "")
