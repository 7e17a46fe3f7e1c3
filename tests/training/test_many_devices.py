"""Several processes train what one trains, end together, and go on from what is there."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from discernment.files import read_json, read_json_lines
from launched import die_at, launched
from tiny import make_benign, make_prompts

pytestmark = pytest.mark.slow

KILLED = -9
ALIGN = ["align", "tiny", "-s", "pairs.jsonl", "-s", "benign.jsonl", "-O", "learning_rate=3e-3"]
REFINE = ["refine", "tiny", "--layer", "3", "-s", "pairs.jsonl", "-O", "learning_rate=3e-3", "-O", "steps=6"]
KEPT = ["--retained", "benign.jsonl", "-O", "retention=0.5", "-O", "retention_batch=2", "-O", "batch_size=10"]
LOOKS = ["--validation", "pairs.jsonl", "-O", "evaluate_every=2"]
LORA = ["-O", "lora={rank: 4}"]
EVALUATE = ["evaluate", "tiny", "-s", "pairs.jsonl", "-O", "max_new_tokens=3", "-O", "unscored_limit=1"]


@pytest.fixture
def folder(tmp_path, model_folder):
    """A model and prompt files."""
    model_folder().rename(tmp_path / "tiny")
    make_prompts(12).to_jsonl(tmp_path / "pairs.jsonl")
    make_benign(5).to_jsonl(tmp_path / "benign.jsonl")
    return tmp_path


def weights(place):
    return load_file(place / "model/model.safetensors")


def history(place):
    return [row for _, row in read_json_lines(place / "history.jsonl")]


def check_alike(one, other, start):
    """Weights and the numbers of each step are the same, and many times what is tolerated has been learned."""
    expected, found, before = weights(one), weights(other), load_file(start / "model.safetensors")
    assert expected.keys() == found.keys() == before.keys()
    assert max(float((expected[name] - before[name]).abs().max()) for name in before) > 0.005
    assert max(float((expected[name] - found[name]).abs().max()) for name in before) < 1e-4
    assert history(one)
    for row, other_row in zip(history(one), history(other), strict=True):
        assert row == pytest.approx(other_row, abs=1e-4)


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ([*REFINE, *KEPT, *LOOKS], 2),
        ([*REFINE, *KEPT, *LOOKS, *LORA], 4),
        # 29 rows: of the last five, the last process has none.
        ([*ALIGN, "-O", "batch_size=8", "-O", "epochs=2"], 4),
        ([*ALIGN, "-O", "batch_size=8", "-O", "gradient_accumulation=2", *LORA], 2),
    ],
    ids=["stage 1", "stage 1 with adapters", "stage 2", "stage 2 with adapters"],
)
def test_the_devices_learn_together_what_one_learns(folder, command, processes):
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)
    first, *others = launched(folder, *command, "-o", "many", processes=processes)
    assert (alone.code, first.code) == (0, 0), first.error
    assert first.out == alone.out.replace("alone", "many")
    assert [tuple(other) for other in others] == [(0, "", "")] * (processes - 1)
    check_alike(folder / "alone", folder / "many", folder / "tiny")
    records = [read_json(folder / out / "stage.json") for out in ("alone", "many")]
    for same in ("steps", "tokens", "inputs"):
        assert records[0][same] == records[1][same]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([*ALIGN, "-O", "batch_size=7"], "A batch of 7 cannot be shared out among 2 devices in equal parts"),
        ([*REFINE, "-O", "batch_size=10", "-O", "learning_rate=1e30"], "The loss is nan at step"),
        (["align", "tiny", "-s", "none.jsonl"], "none.jsonl"),
        (["judges", "train"], "The training of a judge works in one process"),
    ],
    ids=["shares", "in all processes", "before the stage", "not together"],
)
def test_a_mistake_ends_all_and_is_told_once(folder, command, said):
    ended = launched(folder, *command, "-o", "many")
    errors = "".join(each.error for each in ended)
    assert errors.count("discern: ") == 1, ended
    assert said in errors.partition("discern: ")[2]
    assert "Traceback" not in errors
    assert ended[0].code == 2
    assert not (folder / "many").exists()


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("command", [[*REFINE, *KEPT], [*ALIGN, "-O", "batch_size=8", "-O", "epochs=2"]])
def test_a_process_that_is_killed_ends_the_others_and_the_command_goes_on(folder, command, killed):
    command = [*command, "-O", "checkpoint_every=2"]
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)
    assert alone.code == 0

    def before(rank):
        if rank == killed:
            die_at("checkpoint-4")

    ended = launched(folder, *command, "-o", "many", before=before)
    assert ended[killed].code == KILLED
    left = ended[1 - killed]
    assert left.code == 2
    said = "discern: another process of this run has ended; the same command goes on from what is there.\n"
    assert left.error.count("discern: ") == left.error.count(said) == 1
    assert "Traceback" not in left.error
    assert [path.name for path in (folder / "many.part/checkpoints").glob("checkpoint-2")] == ["checkpoint-2"]
    again = launched(folder, *command, "-o", "many")
    assert [each.code for each in again] == [0, 0]
    check_alike(folder / "alone", folder / "many", folder / "tiny")


def test_the_devices_take_turns_with_the_batches_of_an_evaluation(folder):
    command = [*EVALUATE, "-O", "batch_size=5"]
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)
    first, other = launched(folder, *command, "-o", "many")
    assert (alone.code, first.code, tuple(other)) == (0, 0, (0, "", "")), first.error
    for file in ("samples.jsonl", "completions.jsonl", "rejection.jsonl"):
        assert (folder / "many" / file).read_bytes() == (folder / "alone" / file).read_bytes()
    assert len((folder / "many/samples.jsonl").read_text().splitlines()) == 24
    assert len((folder / "alone/completions.jsonl").read_text().splitlines()) == 24


def test_an_interrupted_evaluation_goes_on(folder):
    command = [*EVALUATE, "-O", "batch_size=5", "-o", "many"]

    def before(rank):
        if rank == 0:
            die_at("rejection.jsonl", "open", 4)

    assert launched(folder, *command, before=before)[0].code == KILLED
    kept = (folder / "many.part/completions.jsonl").read_text().splitlines()
    assert 0 < len(kept) < 24
    assert [each.code for each in launched(folder, *command)] == [0, 0]
    whole = (folder / "many/completions.jsonl").read_text().splitlines()
    assert (len(whole), whole[: len(kept)]) == (24, kept)
    shutil.rmtree(folder / "many")
    assert [each.code for each in launched(folder, *command, processes=1)] == [0]
    assert (folder / "many/completions.jsonl").read_text().splitlines() == whole
