"""The recipes that come along: each can be read, is described by what it holds, and gives way to the user's own."""

from pathlib import Path

import pytest
import yaml

from discernment.errors import DataError, RecipeError
from discernment.prompts.catalogue import catalogue
from discernment.runs.built_in import built_in, find_recipe
from discernment.runs.preparation import prepare
from discernment.runs.recipe import read_recipe
from discernment.runs.search.sweep import read_sweep

NAMES = {
    "attacked", "dynamics", "field", "field_search", "frontiers", "held", "layers", "public", "quickstart", "quickstart_search",
    "quickstart_seeds", "study", "study_control", "study_fresh", "study_gemma", "study_left_out",
    "study_mend", "study_search",
}  # fmt: skip


def test_all_come_along_and_can_be_read():
    found = built_in()
    assert set(found) == NAMES
    for name, one in found.items():
        parsed = read_sweep(name) if one.verb == "sweep" else read_recipe(name)
        assert parsed.name
        assert one.about[-1] in ".?"
        assert 10 < len(one.about) < 100
    assert [name for name, one in found.items() if one.verb == "sweep"] == ["layers"]


def all_sets(content):
    """Whatever stands under `set`, once a string alone was read as what it means."""
    if isinstance(content, dict):
        own = {content["set"]} if "set" in content else set()
        return own.union(*map(all_sets, content.values()))
    return set().union(*map(all_sets, content)) if isinstance(content, list | tuple) else set()


def test_what_each_needs_is_what_it_names():
    found = built_in()
    assert (found["quickstart"].public, found["quickstart"].seeds) == ((), 1)
    assert found["field"].seeds == 3
    assert found["field"].public == (
        "xstest", "oktest", "or_bench_hard", "coconot_contrast", "advbench", "jailbreakbench", "malicious_instruct"
    )  # fmt: skip
    for name, one in found.items():
        parsed = read_sweep(name).recipe if one.verb == "sweep" else read_recipe(name)
        assert set(one.public) == {s for s in all_sets(parsed.model_dump()) if not s.startswith("starter/")}
    assert "i_controversial" in found["study"].public  # named by a string alone
    assert {name for one in found.values() for name in one.public} <= set(catalogue())


def test_a_file_of_the_user_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart") == built_in()["quickstart"].path
    content = yaml.safe_load(find_recipe("quickstart").read_text()) | {"name": "mine"}
    Path("quickstart").write_text(yaml.safe_dump(content))
    assert read_recipe("quickstart").name == "mine"


def test_a_sweep_may_search_over_one_that_comes_along(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "{name: s, recipe: quickstart, space: {refine.layer: [9, 12]}, objectives: [{auroc: dcr}], trials: 2}"
    )
    assert read_sweep(path).recipe == read_recipe("quickstart")


def test_a_folder_of_that_name_is_no_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("public").mkdir()
    assert find_recipe("public") == built_in()["public"].path


def test_the_other_verb_is_named():
    with pytest.raises(RecipeError, match="layers is no recipe; give `discern sweep layers`"):
        read_recipe("layers")
    with pytest.raises(RecipeError, match="study is no sweep; give `discern run study`"):
        read_sweep("study")


@pytest.mark.parametrize("name", ["quick", "quickstart.yaml", "../recipes/quickstart", "runs/quickstart"])
def test_no_such_recipe_is_one_sentence(name):
    with pytest.raises(
        RecipeError, match=rf"There is no recipe {name}: .*quickstart_seeds.*`discern recipes`"
    ):
        find_recipe(name)


def test_a_run_names_all_sets_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"of the public sets are not at hand.*general_instructions.*oktest"):
        prepare(read_recipe("study").model_copy(update={"seeds": []}))
