"""Tasks in other processes: so many at a time, begun anew if they are killed, and none begun after a mistake."""

import os
import sys
import threading

import pytest

from discernment.errors import DataError, RecipeError, RunError
from discernment.runs.fleet.dispatch import ATTEMPTS, Fleet
from discernment.runs.fleet.processes import Processes
from discernment.runs.fleet.ray_cluster import RayCluster
from discernment.runs.fleet.slurm import Slurm
from noted import die, note


def begun(file):
    return len(file.read_text().splitlines())


@pytest.fixture
def fleet(tmp_path):
    with Fleet(Processes(), 2, tmp_path / "jobs") as made:
        yield made


@pytest.mark.slow
def test_a_killed_task_is_begun_anew_and_no_other_with_it(fleet, tmp_path, caplog):
    works = {"dies": die, "always": die, **dict.fromkeys("abcd", note)}
    found = dict(fleet.as_they_end(lambda name: fleet.do(name, works[name], tmp_path / name), iter(works)))
    assert found.keys() == works.keys()
    assert found["always"] is None
    assert {name: begun(tmp_path / name) for name in works} == {
        **dict.fromkeys("abcd", 1),
        "dies": ATTEMPTS,
        "always": ATTEMPTS,
    }
    assert os.getpid() not in found.values()
    assert "A process was killed; its task, dies, is begun anew." in caplog.text
    assert "A process was killed; its task, always, is left to this process." in caplog.text


def test_after_a_mistake_no_task_is_begun(fleet, tmp_path):
    taken, mistaken = [], threading.Event()

    def tasks():
        for name in "abcdef":
            taken.append(name)
            yield name

    def work(name):
        if name == "b":
            mistaken.set()
            raise DataError("The file b is wrong.")
        assert mistaken.wait(60)
        fleet.do(name, note, tmp_path / name)

    with pytest.raises(DataError, match="The file b is wrong"):
        list(fleet.as_they_end(work, tasks()))
    assert taken == ["a", "b"]
    assert begun(tmp_path / "a") == 1  # what was begun has ended


def test_the_next_task_is_asked_for_when_the_one_before_was_dealt_with(fleet, tmp_path):
    dealt_with, seen = [], []

    def tasks():
        for name in "abcd":
            seen.append(len(dealt_with))
            yield name

    for name, _ in fleet.as_they_end(lambda name: fleet.do(name, note, tmp_path / name), tasks()):
        dealt_with.append(name)
    assert sorted(dealt_with) == list("abcd")
    assert seen[:2] == [0, 0]
    assert seen[2] >= 1
    assert seen[3] >= 2


@pytest.mark.parametrize(
    ("engine", "package", "extra"), [(RayCluster(), "ray", "ray"), (Slurm(), "submitit", "slurm")]
)
def test_a_missing_package_is_said_with_what_brings_it(engine, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        RecipeError, match=rf"The engine {extra} needs `pip install 'discernment\[{extra}\]'`"
    ):
        engine.start(1, tmp_path)


def test_a_machine_without_slurm_is_told(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="There is no SLURM on this machine"):
        Slurm().start(1, tmp_path)
