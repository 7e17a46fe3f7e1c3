"""A disk that is full costs one sentence, leaves nothing half-written, and the next call goes on."""

import re
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from damage import make_recipe
from discernment.files import file_hash
from discernment.runs.run import run_recipe
from small_disk import small_disk

SENTENCE = re.compile(
    r"discern: The disk that \S+ lies on has no room \((?:[\d.]+ (?:MB|kB|bytes) are to be written and )?"
    r"[\d.]+ (?:MB|kB|bytes) (?:are free|free there are not enough)\); free (?:[\d.]+ (?:MB|kB|bytes)|some), or name "
    r"another place, and give the command again, which goes on from here\.\n"
)


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as made:
        yield made


def outcome(run):
    names = ["results.json", *(f"stages/*/{name}" for name in ("samples.jsonl", "*/*.safetensors"))]
    return {str(p.relative_to(run)): file_hash(p) for name in names for p in run.glob(name)}


def half_written(run):
    """What a reader could take for whole; weights may be whole where the disk ended right behind them."""
    unfinished = [p for p in run.rglob("*.part") if p.parent.name != "stages"]
    return unfinished + [p for p in run.glob("stages/*.part/**/*.safetensors") if p.is_file() and is_torn(p)]


def is_torn(weights):
    try:
        load_file(weights)
    except SafetensorError:
        return True
    return False


@pytest.mark.slow
def test_a_run_goes_on_as_its_disk_grows(discern, tokenizer, tmp_path, disk):
    recipe = make_recipe(tmp_path, tokenizer)
    run_recipe(recipe, tmp_path / "whole")
    Path("try.yaml").write_text(recipe.to_yaml())
    run, size, ends = disk.folder / "run", 8 << 10, []
    while not ends or ends[-1]:
        disk.resize(size)
        code, output, error = discern("run", "try.yaml", "-o", run)
        assert "Traceback" not in output + error
        ends.append(code)
        if code:
            assert (code, bool(SENTENCE.search(error))) == (2, True), error
            assert not half_written(run)
        size *= 2
        assert size < 64 << 20
    assert len(ends) > 4
    assert outcome(run) == outcome(tmp_path / "whole")
    assert len(outcome(run)) == 5


def test_room_is_looked_for_before_the_training(discern, files, disk):
    disk.resize(100 << 10)
    command = ["align", "tiny", "-s", "pairs.jsonl", "-o", disk.folder / "mine", "-O", "batch_size=8"]
    code, _, error = discern(*command)
    assert code == 2
    assert "are to be written and" in error
    assert not list(disk.folder.rglob("history.jsonl"))
    disk.resize(4 << 20)
    assert discern(*command)[0] == 0


def test_a_checkpoint_without_room_is_no_checkpoint(discern, files, disk):
    command = ["align", "tiny", "-s", "pairs.jsonl", "-O", "batch_size=4", "-O", "checkpoint_every=1"]
    assert discern(*command, "-o", "whole")[0] == 0
    size = Path("whole/model/model.safetensors").stat().st_size
    disk.resize(3 * size)  # a checkpoint is the model and twice as much for the optimizer
    code, _, error = discern(*command, "-o", disk.folder / "mine")
    assert (code, bool(SENTENCE.search(error))) == (2, True), error
    assert not list(disk.folder.rglob("checkpoint-*"))
    disk.resize(20 * size)
    assert discern(*command, "-o", disk.folder / "mine")[0] == 0
    name = "model/model.safetensors"
    assert file_hash(disk.folder / "mine" / name) == file_hash(Path("whole") / name)
