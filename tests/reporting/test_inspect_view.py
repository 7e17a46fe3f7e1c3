"""The server of `inspect view` on an exported folder: it lists every log, and shows of each what the run holds."""

import json
import os
import socket
import subprocess
import sys
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from discernment.files import read_json
from discernment.reporting.exports.gathered import gather
from discernment.reporting.exports.inspect_logs import write_inspect_logs

pytestmark = pytest.mark.slow


@pytest.fixture
def viewed(built_run, tmp_path):
    """The folder with logs, and the address of a server that shows it."""
    folder = tmp_path / "logs"
    write_inspect_logs(gather(built_run), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
    command = ["-m", "inspect_ai", "view", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *command, "--log-dir", str(folder)],
        env={**os.environ, **home},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = []
        for line in server.stdout:  # which ends where the server does
            said.append(line)
            if "Running on" in line:
                break
        assert server.poll() is None, said
        yield folder, f"http://127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.communicate(timeout=30)


def test_the_viewer_lists_and_shows_every_log(viewed, built_run):
    folder, address = viewed
    with urlopen(f"{address}/logs") as answer:
        listed = json.load(answer)
    assert listed["log_dir"] == folder.as_uri()
    methods = read_json(built_run / "results.json")["methods"]
    assert {log["name"]: log["task"] for log in listed["files"]} == {
        (folder / f"{method}.eval").as_uri(): f"quickstart: {method}" for method in methods
    }
    assert len(methods) == 4
    scores = read_json(built_run / "results.json")["scores"]
    for method in methods:
        with urlopen(f"{address}/logs/{quote((folder / f'{method}.eval').as_uri(), safe='')}") as answer:
            log = json.load(answer)
        (right,) = [score for score in log["results"]["scores"] if score["name"] == "right"]
        assert {name: metric["value"] for name, metric in right["metrics"].items()} == {
            f"{s['benchmark']}, {s['label']}": s["value"] for s in scores if s["method"] == method
        }
        assert right["metrics"]
