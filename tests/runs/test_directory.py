"""The directory of a run: whose it is, and what is there already."""

import pytest
from filelock import FileLock

from discernment.errors import DiscernmentError, ModelError, RecipeError, RunError
from discernment.files import read_json, write_json
from discernment.policies.policy import Policy
from discernment.reporting.pages.run import write_report
from discernment.runs.manifest import policy_of
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe


def test_a_directory_in_use_is_left_alone(recipe, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    with (
        FileLock(directory / "run.lock"),
        pytest.raises(RunError, match=r"The run directory .*run is in use by another process"),
    ):
        run_recipe(recipe, directory)
    assert [p.name for p in directory.iterdir()] in ([], ["run.lock"])


def test_files_of_others_are_not_written_over(recipe, tmp_path):
    mine = tmp_path / "mine"
    (mine / "tables").mkdir(parents=True)
    (mine / "recipe.yaml").write_text("# with a comment")
    (mine / "tables" / "survey.csv").write_text("a")
    with pytest.raises(
        RunError, match=r"mine holds files of its own \(recipe.yaml\), which would be written over"
    ):
        run_recipe(recipe, mine)
    assert (mine / "recipe.yaml").read_text() == "# with a comment"
    assert [p.name for p in (mine / "tables").iterdir()] == ["survey.csv"]


@pytest.mark.parametrize("name", [".", "..", "..."])
def test_a_name_is_no_other_directory(recipe, name):
    with pytest.raises(RecipeError, match="name"):
        parse_recipe(recipe.model_dump(mode="json", exclude_defaults=True) | {"name": name}, "r")


def test_a_directory_that_was_there_stays_after_a_mistake(recipe, tmp_path):
    mistaken = recipe.model_copy(update={"refine": {}})
    directory = tmp_path / "mine"
    directory.mkdir()
    with pytest.raises(DiscernmentError, match=r"`refine\.layer` is missing"):
        run_recipe(mistaken, directory)
    assert directory.is_dir()


def test_a_model_that_is_not_there_costs_no_results(recipe, tmp_path):
    run_recipe(recipe, tmp_path / "run")
    before = (tmp_path / "run/results.json").read_bytes()
    missing = recipe.model_copy(
        update={"name": "other", "model": recipe.model.model_copy(update={"model": str(tmp_path / "nobody")})}
    )
    with pytest.raises(ModelError, match="There is no model folder"):
        run_recipe(missing, tmp_path / "run")
    assert (tmp_path / "run/results.json").read_bytes() == before
    assert (tmp_path / "run/manifest.json").is_file()


def test_a_run_of_another_version_is_refused_in_one_sentence_and_can_be_read(recipe, tmp_path):
    directory = tmp_path / "run"
    run_recipe(
        parse_recipe(
            {**recipe.model_dump(mode="json", exclude_defaults=True), "methods": ["base", "stl"]}, "r"
        ),
        directory,
    )
    manifest = read_json(directory / "manifest.json")
    for method in manifest["methods"].values():  # as version 1 named models
        spec = method.pop("policy")["model"]
        method["model"] = {**spec, "model": spec["model"].removeprefix("./")}
    write_json(directory / "manifest.json", {**manifest, "schema_version": 1})
    with pytest.raises(
        RunError, match=r"run holds a run of another version of discernment, which .* with --out\.$"
    ):
        run_recipe(recipe, directory)
    assert "stl" in write_report(directory).read_text(encoding="utf-8")
    assert Policy.load(policy_of(directory, "stl")).model.device.type == "cpu"
