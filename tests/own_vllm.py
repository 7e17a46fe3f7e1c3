"""A command `vllm` for tests: a process of its own that answers as vLLM's server does, by a policy of the test's process.

Run as a script it is that command: it starts a worker, tells that it lives by the file that `VLLM_ALIVE` names, and passes
questions on to `VLLM_BEHIND`. `VLLM_MOOD` has it fail: `broken`, `silent`, `deaf`, or `dies` after so many questions.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WORKER = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"


def install(folder: Path, monkeypatch: object, **environment: str) -> Path:
    """Put the command first on PATH.

    Args:
        folder: Gets it, the arguments that it is given (`arguments.json`), and `alive`, a pipe that it holds open.
        monkeypatch: Sets the environment.
        **environment: More of it.

    Returns:
        The pipe.
    """
    command = folder / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -I {__file__} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    alive = folder / "alive"
    os.mkfifo(alive)
    told = {"VLLM_ALIVE": str(alive), "VLLM_ARGUMENTS": str(folder / "arguments.json"), **environment}
    for name, value in {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", **told}.items():
        monkeypatch.setenv(name, value)
    return alive


@contextmanager
def nothing_left(alive: Path) -> Iterator[None]:
    """A `with` block after which no process of the command is left, worker included; waits for their ends."""
    reading = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    try:
        yield
        started = 0
        while told := os.read(reading, 64):  # ends when nobody holds the pipe open any more
            started += len(told)
        assert started, "the command was never started"
    finally:
        os.close(reading)


class _Passing(BaseHTTPRequestHandler):
    questions = 0

    def do_GET(self) -> None:
        if self.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.answer(401, b"{}")
            return
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "vllm"} for name in SERVED]
        self.answer(200, json.dumps({"object": "list", "data": listed}).encode())

    def do_POST(self) -> None:
        type(self).questions += 1
        if os.environ.get("VLLM_MOOD") == "dies" and self.questions > 2:
            print("the device has fallen off the bus", flush=True)
            os._exit(3)
        body = self.rfile.read(int(self.headers["content-length"]))
        asked = urllib.request.Request(f"{os.environ['VLLM_BEHIND']}/completions", body)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as found:
            self.answer(200, found.read())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def main() -> None:
    """Be the command."""
    held = os.open(os.environ["VLLM_ALIVE"], os.O_RDWR)
    os.write(held, b"x")
    Path(os.environ["VLLM_ARGUMENTS"]).write_text(json.dumps(sys.argv[1:]), encoding="utf-8")
    mood = os.environ.get("VLLM_MOOD")
    subprocess.Popen([sys.executable, "-I", "-c", WORKER], pass_fds=[held])
    if mood == "broken":
        print("loading\nCUDA out of memory\n\n", flush=True)
        sys.exit(1)
    if mood == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mood in ("silent", "deaf"):
        print("loading", flush=True)
        signal.pause()
    SERVED[:] = [value_of("--lora-modules", "=").split("=")[0], value_of("--served-model-name")]
    ThreadingHTTPServer((value_of("--host"), int(value_of("--port"))), _Passing).serve_forever()


def value_of(option: str, otherwise: str = "") -> str:
    """The value that an option is given."""
    return sys.argv[sys.argv.index(option) + 1] if option in sys.argv else otherwise


SERVED: list[str] = []

if __name__ == "__main__":
    main()
