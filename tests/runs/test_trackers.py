"""Curves and final numbers in TensorBoard's own files, and that no stage depends on who is told of it."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from discernment.errors import RecipeError
from discernment.evaluation.results import Results
from discernment.files import read_json, read_json_lines
from discernment.runs.recipe import parse_recipe, read_recipe
from discernment.runs.run import run_recipe
from discernment.runs.seeds import run_seeds
from tiny import make_benign, make_prompts, save_model


@pytest.fixture(autouse=True)
def _no_trackers(monkeypatch):
    for name in ("DISCERNMENT_REPORT_TO", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe(tmp_path, monkeypatch, tokenizer):
    """A recipe with both stages, and keys over its own."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("tiny"), tokenizer)
    make_prompts(6).to_jsonl(Path("pairs.jsonl"))
    make_benign(4).to_jsonl(Path("benign.jsonl"))
    content = {
        "name": "try",
        "model": "tiny",
        "data": {"general": "benign.jsonl", "safety": "pairs.jsonl", "contrast": "pairs.jsonl"},
        "refine": {"layer": 2, "steps": 2, "batch_size": 4},
        "align": {"batch_size": 8, "epochs": 1},
        "methods": ["stl", "dcr"],
        "evaluate": {
            "max_new_tokens": 3, "unscored_limit": 1, "openings": ["Sorry"], "benchmarks": ["pairs.jsonl"]
        },
    }  # fmt: skip
    return lambda **more: parse_recipe({**content, **more}, "try")


def scalars(folder):
    """What TensorBoard reads in a folder: by tag, the steps and the values."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def stages(run):
    return {path.name: path.stat().st_mtime_ns for path in (run / "stages").iterdir()}


def test_curves_and_numbers_reach_the_tracker_and_no_stage_depends_on_it(recipe):
    run = Path("run")
    assert run_recipe(recipe(), run).stages_run > 0
    assert not (run / "tensorboard").exists()
    untracked = stages(run)

    # The same stages; the numbers are sent even so.
    assert run_recipe(recipe(track="tensorboard"), run).stages_run == 0
    assert stages(run) == untracked
    assert read_recipe(run / "recipe.yaml").track == ["tensorboard"]
    results = Results.model_validate(read_json(run / "results.json"))
    sent = scalars(run / "tensorboard/try results")
    rates = {f"eval/{s.method}/{s.metric}/{s.benchmark}/{s.label}": s.value for s in results.scores}
    ranked = {f"eval/{r.method}/auroc/{r.harmless}/{r.harmless_label}": r.value for r in results.rankings}
    equal = {
        f"eval/{e.method}/{what}/{e.harmless}/{e.harmless_label}": value
        for e in results.equal_safety
        for what, value in (("equal_safety", e.compliance), ("equal_safety_difference", e.difference))
    }
    expected = {name: value for name, value in (rates | ranked | equal).items() if value is not None}
    assert {f"eval/{m}/auroc/pairs.jsonl/seemingly_toxic" for m in ("stl", "dcr")} <= expected.keys()
    assert sent.keys() == expected.keys()
    for name, value in expected.items():
        assert sent[name] == [(0, pytest.approx(value, abs=1e-6))]
    # Once.
    run_recipe(recipe(track="tensorboard"), run)
    assert len(list((run / "tensorboard/try results").iterdir())) == 1

    # Another run has the curves of both stages, as history.jsonl has them, and stages of the same names.
    other = Path("other")
    run_recipe(recipe(track=["tensorboard"]), other)
    assert stages(other).keys() == untracked.keys()
    owners = {key: stage["methods"][0] for key, stage in read_json(other / "manifest.json")["stages"].items()}
    trained = [key for key in owners if key.startswith(("refine-", "align-"))]
    assert len(trained) == 3
    for key in trained:
        curves = scalars(other / f"tensorboard/{owners[key]} {key}")
        rows = [row for _, row in read_json_lines(other / "stages" / key / "history.jsonl")]
        losses = [(row["step"], pytest.approx(row["loss"], rel=1e-5)) for row in rows if "loss" in row]
        assert losses
        assert curves["train/loss"] == losses


def test_the_environment_names_them_where_the_recipe_does_not(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("DISCERNMENT_REPORT_TO", "tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    short = {"methods": ["stl"], "refine": {}}
    run_recipe(recipe(track=[], **short), Path("silent"))
    assert not Path("elsewhere").exists()
    run_recipe(recipe(**short), Path("run"))
    names = sorted(path.name.split("-")[0] for path in Path("elsewhere").iterdir())
    assert names == ["stl align", "try results"]
    assert not Path("run/tensorboard").exists()


def test_a_tracker_that_fails_costs_a_line_and_not_the_run(recipe, monkeypatch, caplog):
    Path("file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "file")
    only = recipe(track="tensorboard", methods=["base"], refine={})
    run_recipe(only, Path("run"))
    assert "The numbers could not be sent to tensorboard" in caplog.text
    assert read_json(Path("run/manifest.json"))["status"] == "complete"
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    run_recipe(only, Path("run"))
    assert scalars("run/tensorboard/try results")


def test_runs_of_seeds_have_their_numbers_and_share_curves(recipe):
    run_seeds(recipe(track="tensorboard", seeds=[1, 2], methods=["base"], refine={}), Path("runs"))
    for seed in (1, 2):
        assert scalars(f"runs/seed-{seed}/tensorboard/try-{seed} results")


@pytest.mark.parametrize(
    ("track", "variable", "said"),
    [
        (
            ["tensorbord"],
            "",
            "`track` names the tracker 'tensorbord', which transformers does not know; it knows",
        ),
        (
            "codecarbon",
            "",
            "`track` names the tracker 'codecarbon', which is not installed; install its package",
        ),
        (None, "codecarbon", "DISCERNMENT_REPORT_TO names the tracker 'codecarbon', which is not installed"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_sentence_before_anything_is_done(
    recipe, monkeypatch, track, variable, said
):
    monkeypatch.setenv("DISCERNMENT_REPORT_TO", variable)
    with pytest.raises(RecipeError) as raised:
        run_recipe(recipe(**({} if track is None else {"track": track})), Path("run"))
    assert str(raised.value).startswith(said)
    assert not list(Path("run").glob("stages/*"))
