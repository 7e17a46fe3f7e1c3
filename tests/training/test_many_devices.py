"""Several processes train what one trains, end together, and go on from what is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file

from discernment.files import read_json, read_json_lines
from launched import die_at, launched
from opened import SHARDED, spread_over_processors
from tiny import make_benign, make_prompts

KILLED = -9
ALIGN = ["align", "tiny", "-s", "pairs.jsonl", "-s", "benign.jsonl", "-O", "learning_rate=3e-3"]
REFINE = ["refine", "tiny", "--layer", "3", "-s", "pairs.jsonl", "-O", "learning_rate=3e-3", "-O", "steps=6"]
KEPT = ["--retained", "benign.jsonl", "-O", "retention=0.5", "-O", "retention_batch=2", "-O", "batch_size=10"]
LOOKS = ["--validation", "pairs.jsonl", "-O", "evaluate_every=2"]
LORA = ["-O", "lora={rank: 4}"]
LAUNCH = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--module"]
PARTS = {"general": "benign", "safety": "pairs", "contrast": "pairs"}
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


def test_two_devices_contrast_the_states_of_both(folder):
    command = [*REFINE, *KEPT, "-O", "steps=3", "-o"]
    (alone,), many = launched(folder, *command, "alone", processes=1), launched(folder, *command, "many")
    assert [each.code for each in (alone, *many)] == [0, 0, 0], many
    check_alike(folder / "alone", folder / "many", folder / "tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ([*REFINE, *KEPT, *LOOKS], 2),
        ([*REFINE, *KEPT, *LOOKS, *LORA], 4),
        ([*REFINE, "-O", "loss.memory=64"], 2),
        ([*REFINE, *KEPT, "-O", "loss.worst_sources=0.5"], 2),
        # 29 rows: of the last five, the last process has none.
        ([*ALIGN, "-O", "batch_size=8", "-O", "epochs=2"], 4),
        ([*ALIGN, "-O", "batch_size=8", "-O", "gradient_accumulation=2", *LORA], 2),
    ],
    ids=["stage 1", "adapters", "memory", "worst sources", "stage 2", "stage 2 with adapters"],
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize(
    ("command", "place"),
    # Both in the midst of the second epoch.
    [([*REFINE, *KEPT], "checkpoint-5"), ([*ALIGN, "-O", "batch_size=8", "-O", "epochs=2"], "checkpoint-6")],
    ids=["stage 1", "stage 2"],
)
def test_a_process_that_is_killed_ends_the_others_and_the_command_goes_on(folder, command, place, killed):
    command = [*command, "-O", "checkpoint_every=1"]
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)
    assert alone.code == 0

    def before(rank):
        if rank == killed:
            die_at(place)

    ended = launched(folder, *command, "-o", "many", before=before)
    assert ended[killed].code == KILLED
    left = ended[1 - killed]
    assert left.code == 2
    said = "discern: another process of this run has ended; the same command goes on from what is there.\n"
    assert left.error.count("discern: ") == left.error.count(said) == 1
    assert "Traceback" not in left.error
    assert len([*(folder / "many.part/checkpoints").glob("checkpoint-*/trainer_state.json")]) >= 1
    again = launched(folder, *command, "-o", "many")
    assert [each.code for each in again] == [0, 0]
    check_alike(folder / "alone", folder / "many", folder / "tiny")


@pytest.mark.slow
def test_the_devices_take_turns_with_the_batches_of_an_evaluation(folder):
    command = [*EVALUATE, "-O", "batch_size=5"]
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)
    first, other = launched(folder, *command, "-o", "many")
    assert (alone.code, first.code, tuple(other)) == (0, 0, (0, "", "")), first.error
    for file in ("samples.jsonl", "completions.jsonl", "rejection.jsonl"):
        assert (folder / "many" / file).read_bytes() == (folder / "alone" / file).read_bytes()
    assert len((folder / "many/samples.jsonl").read_text().splitlines()) == 24
    assert len((folder / "alone/completions.jsonl").read_text().splitlines()) == 24


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [*REFINE, *KEPT, *LOOKS, "-O", "checkpoint_every=2"],
        [*REFINE, *KEPT, *LORA],
        [*ALIGN, "-O", "batch_size=8", "-O", "epochs=2"],
        [*ALIGN, "-O", "batch_size=8", *LORA],
    ],
    ids=["stage 1", "stage 1 with adapters", "stage 2", "stage 2 with adapters"],
)
@pytest.mark.parametrize(
    ("form", "tied"),
    [("FULL_STATE_DICT", False), ("SHARDED_STATE_DICT", True)],
    ids=["whole", "in parts, tied"],
)
def test_a_model_that_is_spread_over_devices_learns_the_same(
    tmp_path, model_folder, folder, command, tied, form
):
    if tied:
        shutil.rmtree(folder / "tiny")
        model_folder(tie_word_embeddings=True).rename(folder / "tiny")
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)
    environment = {**SHARDED, "FSDP_STATE_DICT_TYPE": form}
    many = launched(
        folder,
        *command,
        "-o",
        "many",
        before=lambda rank: spread_over_processors(folder / f"parts-{rank}"),
        **environment,
    )
    assert [each.code for each in (alone, *many)] == [0, 0, 0], many
    check_alike(folder / "alone", folder / "many", folder / "tiny")
    for rank in range(2):
        parts = (folder / f"parts-{rank}").read_text().split()
        assert parts.count("LlamaDecoderLayer") == (3 if command[0] == "refine" else 4)
    configurations = [(folder / out / "model/config.json").read_bytes() for out in ("alone", "many")]
    assert configurations[0] == configurations[1]


@pytest.mark.slow
def test_a_model_that_is_spread_over_devices_goes_on(folder):
    command = [*REFINE, *KEPT, "-O", "checkpoint_every=1"]
    (alone,) = launched(folder, *command, "-o", "alone", processes=1)

    def before(rank):
        spread_over_processors(folder / f"parts-{rank}")
        if rank == 1:
            die_at("checkpoint-5")

    assert launched(folder, *command, "-o", "many", before=before, **SHARDED)[1].code == KILLED
    assert [*(folder / "many.part/checkpoints").glob("*/pytorch_model_fsdp*")]
    ended = launched(
        folder,
        *command,
        "-o",
        "many",
        before=lambda rank: spread_over_processors(folder / f"again-{rank}"),
        **SHARDED,
    )
    assert [each.code for each in (alone, *ended)] == [0, 0, 0]
    assert [f" {step}/6 " in ended[0].error for step in (1, 2, 6)] == [False, False, True]
    check_alike(folder / "alone", folder / "many", folder / "tiny")


@pytest.mark.slow
def test_processors_are_not_spread_over(folder):
    ended = launched(folder, *ALIGN, "-O", "batch_size=8", "-o", "many", **SHARDED)
    assert "".join(each.error for each in ended).count("start without FSDP.") == 1, ended
    assert ended[0].code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [["torch.distributed.run", "--nproc_per_node=2", "--module"], LAUNCH],
    ids=["torchrun", "accelerate"],
)
def test_a_recipe_is_run_by_what_a_launcher_starts(folder, launcher):
    recipe = {
        "name": "many",
        "model": {"model": "tiny"},
        "data": {name: [f"{file}.jsonl"] for name, file in PARTS.items()},
        "refine": {"layer": 2, "steps": 3, "batch_size": 8, "learning_rate": 3e-3, "stopping": "none"},
        "align": {"batch_size": 4, "learning_rate": 3e-3},
        "methods": ["base", "dcr"],
        "evaluate": {
            "benchmarks": ["pairs.jsonl"],
            "max_new_tokens": 3,
            "openings": ["Sorry"],
            "unscored_limit": 1,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = ["run", "recipe.yaml"]
    (alone,) = launched(folder, *run, "--out", "alone", processes=1)
    assert alone.code == 0, alone.error
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", *launcher, "discernment", *run]

    def start(*arguments):
        return subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    for said in ("Report: ", "Nothing to do: every stage was done before."):
        ended = start("--out", "many")
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count(said) == 1
    found = [read_json(folder / out / "results.json") for out in ("alone", "many")]
    assert found[0] == found[1]
    stages = [sorted(path.name for path in (folder / out / "stages").iterdir()) for out in ("alone", "many")]
    assert stages[0] == stages[1]
    for stage in (name for name in stages[0] if name.startswith(("refine", "align"))):
        check_alike(folder / "alone/stages" / stage, folder / "many/stages" / stage, folder / "tiny")
    wrong = start("--jobs", "2", "--out", "wrong")
    assert wrong.returncode != 0
    assert wrong.stderr.count("discern: `--jobs` works in one process") == 1
