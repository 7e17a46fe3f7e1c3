"""A stage is claimed by one process at a time; the claim of one that is gone is taken over, that of one that lives is not."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from discernment.cost import StageCost
from discernment.errors import RunError
from discernment.runs import claims
from discernment.runs.claims import claimed
from discernment.runs.stages import Quiet, StageRunner

HOLDER = """
import os, signal, sys
from pathlib import Path
from discernment.runs.claims import claimed

with claimed(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""
ELSEWHERE = "filelock/2\npid=1\nhost=another-machine\nmode=lease\ntoken=00ff\nduration={}\n"


@pytest.fixture
def stage(tmp_path):
    return tmp_path / "stages/align-1"


def claim_file(stage):
    return stage.parent.parent / ".locks" / f"{stage.name}.claim"


def write_claim_of_another_machine(stage, seconds):
    claim_file(stage).parent.mkdir(parents=True, exist_ok=True)
    claim_file(stage).write_text(ELSEWHERE.format(float(seconds)))


def test_a_claim_names_its_owner_and_goes_with_it(stage):
    with claimed(stage) as claim:
        assert claim.holds
        assert f"pid={os.getpid()}\n" in claim_file(stage).read_text()
    assert not claim_file(stage).exists()


@pytest.mark.timeout(60)  # the heartbeat of the dead process would have to be waited for twice as long
def test_the_claim_of_a_process_that_was_killed_is_taken_at_once(stage):
    ended = subprocess.run([sys.executable, "-c", HOLDER, stage])
    assert ended.returncode == -signal.SIGKILL
    assert claim_file(stage).exists()
    with claimed(stage) as claim:
        assert claim.holds


def test_the_claim_of_a_dead_machine_is_taken_when_it_was_not_touched_for_long(stage, monkeypatch):
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_LOOKS", 0.01)
    write_claim_of_another_machine(stage, 0.2)
    with claimed(stage) as claim:
        assert claim.holds


def test_a_claim_that_is_touched_is_waited_for(stage, monkeypatch):
    monkeypatch.setattr(claims, "CLAIM_SECONDS", 0.2)
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_LOOKS", 0.01)
    got = threading.Event()

    def wait():
        with claimed(stage):
            got.set()

    waiting = threading.Thread(target=wait)
    with claimed(stage) as claim:
        waiting.start()
        assert not got.wait(1.0)  # five times as long as an untouched one is respected
        assert claim.holds
    waiting.join()
    assert got.is_set()


def test_who_was_taken_for_dead_does_not_publish_its_stage(tmp_path):
    runner = StageRunner(tmp_path / "stages", Quiet())

    def work(out):
        (file,) = (tmp_path / ".locks").glob("*.claim")
        file.unlink()
        file.write_text(ELSEWHERE.format(120.0))  # as another does that takes it over
        return StageCost(steps=1, tokens=1)

    with pytest.raises(RunError, match=r"took judge-.* over; give the same command again"):
        runner.run("judge", work, {})
    assert [path.suffix for path in (tmp_path / "stages").iterdir()] == [".part"]
    assert list((tmp_path / ".locks").glob("*.claim"))  # the other goes on


def test_locks_of_earlier_versions_are_in_nobodys_way(tmp_path):
    runner = StageRunner(tmp_path / "stages", Quiet())
    place = runner.place("judge", leave, {})
    (tmp_path / ".locks").mkdir()
    (tmp_path / f".locks/{place.name}.lock").touch()
    assert runner.run("judge", leave, {}) == place
    assert place.is_dir()


def leave(out):
    return StageCost(steps=1, tokens=1)
