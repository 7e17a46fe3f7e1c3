"""A full disk is known in the words of every library that writes here, and nothing else is taken for one."""

import errno
import os
import re
import resource
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from discernment.disk import check_room, is_full, no_room, room
from discernment.errors import DataError, DiskError, ModelError
from discernment.files import append_json_lines, write_text
from discernment.keyed_log import KeyedLog
from small_disk import small_disk

VOCABULARY = {f"word{n}": n for n in range(9999)}
WRITERS = {
    "python": lambda path: path.write_bytes(bytes(1 << 20)),
    "torch": lambda path: torch.save(torch.zeros(1 << 20), path),
    "torch, many": lambda path: torch.save([torch.zeros(99) for _ in range(99)], path),
    "safetensors": lambda path: save_file({"a": torch.zeros(1 << 20)}, path),
    "numpy": lambda path: np.save(path, np.zeros(1 << 20)),
    "tokenizers": lambda path: Tokenizer(models.WordLevel(VOCABULARY, unk_token="word0")).save(str(path)),
    "arrow": lambda path: parquet.write_table(pyarrow.table({"a": list(range(99999))}), path),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_library_is_understood(write, tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(Exception) as caught:
            write(disk.folder / "file.npy")
        assert is_full(caught.value)
        with pytest.raises(DiskError, match=r"disk lies on has no room"), room(disk.folder):
            write(disk.folder / "file.npy")


def test_what_came_of_it_is_it_too_and_other_mistakes_are_not():
    def caused(cause, effect):
        try:
            try:
                raise cause
            except type(cause) as error:
                raise effect from error
        except type(effect) as error:
            return error

    full = OSError(errno.ENOSPC, "No space left on device")
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(caused(full, ModelError("The model cannot be loaded.")))
    assert is_full(caused(caused(full, RuntimeError("generation")), DataError("x")))
    assert is_full(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    for other in (
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error"),
        RuntimeError("CUDA out of memory"),
        Exception("os error 280"),
        caused(OSError(errno.ENOENT, "No such file"), ModelError("x")),
    ):
        assert not is_full(other)
    with pytest.raises(PermissionError), room(Path()):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_the_sentence_says_what_is_missing(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_room(tmp_path / "not/there/yet", free // 2)
    with pytest.raises(
        DiskError, match=r"yet lies on has no room \([\d.]+ GB are to be written and .*; free 5\.\d GB, or"
    ):
        check_room(tmp_path / "not/there/yet", free + 5_500_000_000)
    assert re.search(r"\(\S+ \w+ free there are not enough\); free some, or name", str(no_room(tmp_path)))


@pytest.fixture
def largest_file():
    """Lets no file grow beyond so many bytes: what a full disk does, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path, largest_file):
    path, log = tmp_path / "kept.json", tmp_path / "log.jsonl"
    write_text(path, "old\n")
    append_json_lines(log, [{"n": 1}])
    answers = KeyedLog(tmp_path / "answers.jsonl", lambda row: row["value"], "is no answer")
    answers.add("a", 1, {"value": 1})
    largest_file(2000)
    for write in (
        lambda: write_text(path, "new" * 1000),
        lambda: append_json_lines(log, [{"n": "2" * 500} for _ in range(5)]),
        lambda: answers.add("b", 2, {"value": "2" * 3000}),
    ):
        with pytest.raises(OSError, match="File too large"):
            write()
    largest_file(resource.RLIM_INFINITY)
    assert path.read_text() == "old\n"
    assert log.read_text() == '{"n": 1}\n'
    answers.add("c", 3, {"value": 3})
    again = KeyedLog(tmp_path / "answers.jsonl", lambda row: row["value"], "is no answer")
    assert [key in again for key in "abc"] == [True, False, True]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers.jsonl", "kept.json", "log.jsonl"]
