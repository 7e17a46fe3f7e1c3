"""What the texts of options mean."""

from pathlib import Path

import pytest

from discernment.cli.options import out_option, parse_options, parse_policy
from discernment.errors import DataError, RecipeError
from discernment.files import write_json
from discernment.runs.stages import share_stages
from discernment.training.supervised import AlignOptions


def write_stage(folder):
    facts = {
        "id": folder.name,
        "name": "align",
        "seconds": 1.0,
        "peak_memory_bytes": None,
        "steps": 1,
        "tokens": 1,
    }
    write_json(folder / "stage.json", {**facts, "inputs": {}})


@pytest.mark.parametrize(
    "entry",
    [
        {"model": {"model": "stages/align-1/model", "system": "Be kind."}},  # of a run of version 1
        {"policy": {"model": {"model": "./stages/align-1/model", "system": "Be kind."}}},
    ],
    ids=["model", "policy"],
)
def test_a_method_of_a_run_is_its_policy(tmp_path, entry) -> None:
    write_json(tmp_path / "runs/try/manifest.json", {"methods": {"stl": entry}})
    write_stage(tmp_path / "runs/try/stages/align-1")
    found = parse_policy("runs/try/stl", None, ["dtype=float32"]).model
    assert (found.model, found.dtype) == ("runs/try/stages/align-1/model", "float32")
    assert found.system == "Be kind."
    assert parse_policy("runs/try/stl", "Be brief.", None).model.system == "Be brief."
    with pytest.raises(DataError, match="The run runs/try has no method 'dcr'; it has stl"):
        parse_policy("runs/try/dcr", None, None)


def test_the_parts_of_a_policy_lie_in_its_run(tmp_path) -> None:
    policy = {"model": "some/model", "adapters": ["./stages/align-1/adapter", "someone/else"]}
    write_json(tmp_path / "runs/try/manifest.json", {"methods": {"stl": {"policy": policy}}})
    write_stage(tmp_path / "runs/try/stages/align-1")
    found = parse_policy("runs/try/stl", None, None)
    assert (found.model.model, found.adapters) == (
        "some/model",
        ("runs/try/stages/align-1/adapter", "someone/else"),
    )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("learning_rate=.inf", "learning_rate"),
        ("seed=2024-13-01", "is not YAML"),
        ("seed=" + "[" * 3000, "is not YAML"),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence(option, said) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_options(AlignOptions, [option])


@pytest.mark.parametrize("out", [".", "../here", "below/.."])
def test_where_results_go_has_a_name(tmp_path, monkeypatch, out) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    found = out_option("Results.").callback(Path(out))
    assert found.name == "here"
    assert found.resolve() == tmp_path / "here"


@pytest.mark.parametrize(
    "command",
    [
        "chat mine/dcr", "publish mine/dcr me/name --dry-run", "judges audit mine --json", "diagnose mine/stl --out why",
        "align mine/stl --out more", "evaluate mine/dcr --out replies", "export mine --to csv",
    ],
)  # fmt: skip
def test_of_a_run_of_several_seeds_one_is_to_be_named(command, discern, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine/seed-4").mkdir(parents=True)
    share_stages(Path("mine/seed-4"), Path("mine/stages"))
    code, _, error = discern(*command.split())
    assert (code, error) == (
        2, "discern: mine holds several runs; name one of them, such as mine/seed-4.\n"
    )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_run_that_is_called_like_a_seeds_stands_in_nobodys_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out/seed-1/stages").mkdir(parents=True)
    Path("out/seed-1/recipe.yaml").touch()
    for name in ("out/model", "some/model"):
        assert parse_policy(name, None, None).model.model == name
    share_stages(Path("out/seed-2"), Path("out/stages"))
    Path("out/model").mkdir()  # what a single verb left there
    assert parse_policy("out/model", None, None).model.model == "out/model"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate tiny -M model=other --out x", "The option 'model=other' says 'model' a second time"),
        ("chat tiny --system calm -M system=rude", "The option 'system=rude' says 'system' a second time"),
        ("refine tiny --layer 2 -O layer=3 --out x", "The option 'layer=3' says 'layer' a second time"),
        ("init tiny -M quantization=4bit", "`init` finds out by itself whether the weights have to be held in few bits"),
        ("chat tiny --max-new-tokens 0", "should be greater than or equal to 1"),
        ("report run --out there.json", "there.json is there already and is no page"),
        ("publish run/stl/ me/name", "There is no file run/manifest.json"),
    ],
)  # fmt: skip
def test_what_contradicts_is_one_sentence(command, said, discern, files):
    Path("there.json").write_text("{}")
    code, _, error = discern(*command.split())
    assert code == 2
    assert said in " ".join(error.replace("│", " ").split())
    assert Path("there.json").read_text() == "{}"
