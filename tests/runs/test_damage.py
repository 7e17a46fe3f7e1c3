"""A stage whose files were damaged since is made again from what is whole of it, and the run ends as it was."""

import shutil

import pytest

from damage import DAMAGES, damage, make_recipe
from discernment.files import file_hash, read_json, write_json
from discernment.runs.run import run_recipe

TIMES = {"stage.json", "manifest.json", "run.lock"}
"""Files that say when something was done, or how long it took."""
ONE_BY_ONE = ("gone", "half")
ROUNDS = [
    {
        "stages/align-*/model/model.safetensors": "half",
        "stages/refine-*/adapter/adapter_model.safetensors": "gone",
        "stages/evaluate-*/samples.jsonl": "half",
        "manifest.json": "null",
        "recipe.yaml": "other bytes",
        ".recipe.sha256": "other bytes",
    },
    {
        "stages/align-*/model/model.safetensors": "other bytes",
        "stages/refine-*/stage.json": "mapping",
        "stages/evaluate-*/completions.jsonl": "text",
        "manifest.json": "half",
        "results.json": "list",
    },
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    """A recipe, and what it left."""
    folder = tmp_path_factory.mktemp("made")
    recipe = make_recipe(folder, tokenizer)
    run_recipe(recipe, folder / "run")
    return recipe, folder / "run"


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run. It lies elsewhere, as a run may."""
    return shutil.copytree(made[1], tmp_path / "run")


def names(run):
    """Files that hold something: a lock is a name and nothing else."""
    return sorted(
        path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def hashes(run):
    return {str(name): file_hash(run / name) for name in names(run) if name.name not in TIMES}


def check_mended(recipe, run, before, what):
    run_recipe(recipe, run)
    assert hashes(run) == before, what
    assert run_recipe(recipe, run, verify=True).stages_run == 0, what


@pytest.mark.parametrize(
    "damages", [ROUNDS[0], pytest.param(ROUNDS[1], marks=pytest.mark.slow)], ids=["one", "other"]
)
def test_what_is_damaged_is_made_again_and_said(made, run, damages, caplog):
    before = hashes(run)
    assert len(before) > 20
    told = []
    for pattern, kind in damages.items():
        path = sorted(run.glob(pattern))[-1]
        damage(path, kind)
        if pattern.startswith("stages/"):
            told.append(f"{path.name} ")
        elif path.name == "manifest.json":  # results and recipe are written by every call
            told.append("manifest.json is damaged; it is written anew")
    check_mended(made[0], run, before, damages)
    said = [message for message in caplog.messages if "damaged" in message]
    assert len(said) == len(told) == 4
    assert all(any(part in message for message in said) for part in told)


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGES)
def test_every_file_is_made_again_whatever_happened_to_it(made, run, kind):
    before, all_names = hashes(run), names(run)
    assert len(all_names) > 25
    for name in all_names if kind in ONE_BY_ONE else ():
        damage(run / name, kind)
        check_mended(made[0], run, before, f"{name} {kind}")

    for name in all_names:
        damage(run / name, kind)
    run_recipe(made[0], run)
    after = hashes(run)
    differ = {name for name in before if before[name] != after.get(name)}
    # A log that was cut off between two rows gets the others behind them.
    assert {name.rpartition("/")[2] for name in differ} <= {"completions.jsonl", "rejection.jsonl"}


def test_nothing_is_asked_for_twice(made, run):
    """Replies that are whole are taken; a stage that comes after the damaged one stays as it is."""
    (aligned,) = run.glob("stages/align-*/stage.json")
    evaluated = sorted(run.glob("stages/evaluate-*"))[0]
    kept = {path: path.stat().st_ino for path in (aligned, evaluated / "completions.jsonl")}
    damage(evaluated / "samples.jsonl", "gone")
    damage(next(run.glob("stages/refine-*/history.jsonl")), "half")
    assert run_recipe(made[0], run).stages_run == 2
    assert {path: path.stat().st_ino for path in kept} == kept


@pytest.mark.parametrize("damaged", [b"\0" * 60, b"\xff\xfe", b"[]", b'{"key": "torn', b"null"])
def test_an_unfinished_stage_goes_on_from_what_can_be_read_of_it(made, run, damaged):
    before = hashes(run)
    stage = sorted(run.glob("stages/evaluate-*"))[0]
    (stage / "stage.json").unlink()
    (stage / "samples.jsonl").unlink()
    part = stage.rename(stage.with_name(f"{stage.name}.part"))
    rows = (part / "rejection.jsonl").read_bytes().split(b"\n")
    assert len(rows) > 4
    (part / "rejection.jsonl").write_bytes(b"\n".join([*rows[:-1], damaged, b""]))
    assert run_recipe(made[0], run).stages_run == 1
    assert hashes(run) == before


def test_records_of_older_versions_are_taken_where_all_can_be_read(made, run):
    before = hashes(run)
    records = sorted(run.glob("stages/*/stage.json"))

    def make_old():
        for path in records:
            write_json(path, {key: value for key, value in read_json(path).items() if key != "files"})

    make_old()
    assert run_recipe(made[0], run).stages_run == 0
    for pattern, kind in (
        ("stages/align-*/model/model.safetensors", "half"),
        ("stages/refine-*/adapter/adapter_model.safetensors", "gone"),
        ("stages/evaluate-*/samples.jsonl", "half"),
    ):
        damage(sorted(run.glob(pattern))[-1], kind)
    assert run_recipe(made[0], run).stages_run == 3
    assert hashes(run) == before


def test_a_record_does_not_reach_out_of_its_directory(made, run, tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    path = sorted(run.glob("stages/evaluate-*/stage.json"))[0]
    record = read_json(path)
    write_json(path, {**record, "files": {**record["files"], "../../../own.txt": {"size": 0, "sha256": ""}}})
    before = hashes(run)
    assert run_recipe(made[0], run).stages_run == 1
    assert hashes(run) == before
    assert (tmp_path / "own.txt").read_text() == "mine"


def test_what_a_large_file_holds_is_looked_at_when_asked(made, run):
    before = hashes(run)
    stage = sorted(run.glob("stages/evaluate-*"))[0]
    large = stage / "large.bin"
    large.write_bytes(bytes(9 << 20))
    record = read_json(stage / "stage.json")
    facts = {"size": large.stat().st_size, "sha256": file_hash(large)}
    write_json(stage / "stage.json", {**record, "files": {**record["files"], "large.bin": facts}})
    assert run_recipe(made[0], run, verify=True).stages_run == 0
    with large.open("r+b") as handle:
        handle.seek(1 << 20)
        handle.write(b"x")
    assert run_recipe(made[0], run).stages_run == 0
    assert run_recipe(made[0], run, verify=True).stages_run == 1
    assert hashes(run) == before
