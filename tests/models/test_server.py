"""A server in another process: it is there, or one sentence says why not; and it is never left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from discernment.errors import ModelError
from discernment.models.server import Server, free_port
from own_vllm import install, nothing_left

PROGRAM = """
import os, signal, sys
from pathlib import Path
from discernment.models.server import Server

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have set aside for what it starts behind it
told = Path(os.environ["VLLM_ARGUMENTS"])
with Server("vLLM", ["vllm"], os.environ, Path("vllm.log")) as server:
    server.wait_for(lambda: told.is_file() and told.read_text(), 60)
    print("there", flush=True)
    signal.pause()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the command in one of its moods."""
    alive = install(tmp_path, monkeypatch)

    def begin(mood, grace=20.0):
        environment = {**os.environ, "VLLM_MOOD": mood}
        return Server("vLLM", ["vllm"], environment, tmp_path / "vllm.log", grace)

    begin.alive = alive
    return begin


def test_one_that_ends_says_the_last_line_that_it_printed(start, tmp_path):
    with nothing_left(start.alive), pytest.raises(ModelError) as caught, start("broken") as server:
        server.wait_for(lambda: False, 60)
    assert str(caught.value) == (
        "vLLM ended before it could be asked (exit code 1); the last line that it printed is 'CUDA out of memory', and all "
        f"of them are in {tmp_path / 'vllm.log'}."
    )
    assert "loading" in (tmp_path / "vllm.log").read_text()


def test_one_that_never_answers_is_ended_after_the_time_that_it_has(start, tmp_path):
    printed = tmp_path / "vllm.log"
    with nothing_left(start.alive), pytest.raises(ModelError) as caught, start("silent") as server:
        server.wait_for(lambda: printed.stat().st_size > 0, 60)
        server.wait_for(lambda: False, 0)
    assert "could not be asked within 0 seconds; the last line that it printed is 'loading'" in str(
        caught.value
    )


def test_one_that_does_not_want_to_end_is_made_to(start, tmp_path):
    began = time.monotonic()
    with nothing_left(start.alive), start("deaf", grace=0.1) as server:
        server.wait_for(lambda: (tmp_path / "vllm.log").stat().st_size > 0, 60)
    assert 0.1 <= time.monotonic() - began < 15
    assert not (tmp_path / "vllm.log").exists()


def test_a_command_that_is_not_there_is_told_like_one_that_ends(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(ModelError, match=r"ended before.*No such file.*'nowhere'"):  # noqa: SIM117
        with Server("It", ["nowhere"], os.environ, log) as server:
            server.wait_for(lambda: False, 60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_run_is_killed(start, tmp_path, number):
    environment = {**os.environ, "VLLM_MOOD": "silent"}
    command = [sys.executable, "-c", PROGRAM]
    with (
        nothing_left(start.alive),
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run,
    ):
        assert run.stdout.readline() == "there\n"
        run.send_signal(number)
        run.communicate()
    assert run.returncode in (-number, 130, 1)


def test_a_port_is_one_that_can_be_listened_on():
    port = free_port()
    assert 1024 <= port < 65536
