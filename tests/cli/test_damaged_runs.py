"""What verbs say of a run whose files were damaged."""

import re
import shutil
from pathlib import Path

import pytest

from damage import damage, make_recipe
from discernment.reporting.pages.run import write_report
from discernment.runs.run import run_recipe

MEND = "give `discern run run/recipe.yaml --out run` again, which makes it anew from what is whole.\n"
ASKED = {
    "manifest.json": ["report run", "compare run", "chat run/dcr"],
    "results.json": ["report run"],
    "stages/evaluate-*/samples.jsonl": ["report run", "compare run"],
    "stages/evaluate-*/stage.json": ["compare run"],
    "stages/align-*/model/model.safetensors": ["chat run/dcr", "evaluate run/dcr -o o"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("made")
    run_recipe(make_recipe(folder, tokenizer), folder / "run")
    write_report(folder / "run")
    return folder / "run"


@pytest.mark.parametrize("kind", ["half", "other bytes", "list", "null", "mapping"])
def test_verbs_that_only_read_say_what_to_do(discern, made, kind):
    for pattern, commands in ASKED.items():
        shutil.copytree(made, "run")
        damage(sorted(Path("run").glob(pattern))[-1], kind)
        for command in commands:
            code, output, error = discern(*command.split())
            assert (code, output) == (2, ""), (pattern, command, error)
            assert re.fullmatch(r"discern: [^\n]*\.\n", error), (pattern, command, error)
            assert error.endswith(MEND), (pattern, command, error)
        shutil.rmtree("run")


@pytest.mark.parametrize("kind", ["another rank", "torn", "a list"])
def test_a_recipe_that_was_changed_since_is_not_passed_off_as_the_runs(discern, made, kind):
    shutil.copytree(made, "run")
    recipe = Path("run/recipe.yaml")
    before = recipe.read_text()
    recipe.write_text(
        {"another rank": before.replace("rank: 2", "rank: 3"), "torn": "name: [", "a list": "- a"}[kind]
    )
    assert recipe.read_text() != before
    read = ["export run --to csv -o o", "publish run/dcr me/x --dry-run -o p"]
    for command in ["report run", *read]:
        code, _, error = discern(*command.split())
        assert (code, error.count("\n"), error.endswith(MEND)) == (2, 1, True), (command, error)
        assert "was changed since the run" in error
    Path("run/.recipe.sha256").unlink()  # as in a run of an earlier version
    for command in read if kind != "another rank" else ():
        code, _, error = discern(*command.split())
        assert (code, error.count("\n"), error.endswith(MEND)) == (2, 1, True), (command, error)
        assert "recipe.yaml is no recipe" in error


def test_a_finished_run_without_its_samples_is_not_reported_on_as_if_there_were_none(discern, made):
    shutil.copytree(made, "run")
    samples = sorted(Path("run").glob("stages/evaluate-*/samples.jsonl"))[-1]
    samples.unlink()
    code, _, error = discern("report", "run")
    assert (code, str(samples) in error, error.endswith(MEND)) == (2, True, True), error


def test_a_stage_in_a_directory_of_ones_own(discern, made, files, caplog):
    align = ["align", "tiny", "-s", "pairs.jsonl", "-o", "mine", "-O", "batch_size=8"]
    assert discern(*align)[0] == 0
    weights = Path("mine/model/model.safetensors")
    before = weights.read_bytes()
    damage(weights, "half")
    assert discern(*align)[:2] == (0, "Model: mine/model\n")
    assert re.search(
        r"mine is damaged \(model/model\.safetensors has \d+ bytes instead of \d+\)", caplog.text
    )
    assert weights.read_bytes() == before

    Path("mine/thesis.tex").touch()
    assert "Nothing to do" in discern(*align)[1]
    damage(weights, "gone")
    code, _, error = discern(*align)
    assert (code, error.count("discern: ")) == (2, 1)
    assert (
        "model/model.safetensors is gone) and also holds files of others, such as thesis.tex; move" in error
    )
    assert Path("mine/thesis.tex").exists()
    Path("mine/thesis.tex").unlink()
    damage(Path("mine/stage.json"), "half")
    assert "stage.json cannot be read, so nothing tells what mine holds" in discern(*align)[2]
