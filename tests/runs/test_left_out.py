"""A recipe that leaves sources out in turn: who trains on what, who is measured on what, and what is said of it."""

from statistics import fmean

import pytest
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from discernment.cli.main import app
from discernment.errors import RecipeError
from discernment.evaluation.left_out import LeftOutResults
from discernment.evaluation.results import Results
from discernment.files import read_json
from discernment.runs.left_out import run_left_out, without
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from tiny import make_benign, make_prompts


@pytest.fixture
def content(model_folder, tmp_path):
    def a_set(name, prompts):
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
        return str(tmp_path / f"{name}.jsonl")

    one, two, never = (a_set(name, make_prompts(n)) for name, n in (("one", 8), ("two", 6), ("never", 5)))
    benign = a_set("benign", make_benign(6))
    safety = a_set("safety", make_prompts(4))
    return {
        "name": "tiny",
        "model": str(model_folder()),
        "seeds": [0, 1],
        "leave_out": {"first": [one], "second": [two]},
        "data": {"general": benign, "safety": safety, "contrast": [one, two, safety]},
        "refine": {"layer": 1, "steps": 3, "batch_size": 8, "learning_rate": 3e-2},
        "align": {"batch_size": 8, "learning_rate": 3e-3},
        "methods": ["stl", "dcr", {"method": "dcr", "name": "own", "data": {"contrast": [one, two]}}],
        "evaluate": {
            "max_new_tokens": 1,
            "unscored_limit": 1,  # a tiny model says nothing that can be read
            "openings": ["Sorry"],
            "benchmarks": [{"set": s, "name": n} for s, n in ((one, "one"), (two, "two"), (never, "never"))],
        },
    }


def test_a_group_is_in_no_training_and_measured(content):
    recipe = parse_recipe(content, "tiny")
    (one,), (two,) = recipe.leave_out.values()
    for group, gone, kept in (("first", one, two), ("second", two, one)):
        found = without(recipe, group, 7)
        assert (found.seed, found.seeds, found.leave_out) == (7, [], {})
        assert [s.set for s in found.data.contrast] == [kept, recipe.data.safety[0].set]
        assert [s.set for s in found.methods[2].data.contrast] == [kept]
        # What the other group leaves out was trained on here; what is in no group is measured in every run.
        assert [b.set for b in found.evaluate.benchmarks] == [gone, recipe.evaluate.benchmarks[2].set]


def test_every_number_is_of_a_run_and_intervals_are_over_seeds(content, tmp_path):
    recipe, directory = parse_recipe(content, "tiny"), tmp_path / "out"
    found = run_left_out(recipe, directory)
    assert LeftOutResults.model_validate(read_json(directory / "left_out.json")) == found.results
    assert set(found.runs) == {(group, seed) for group in ("first", "second") for seed in (0, 1)}

    of_run = {
        (group, seed): Results.model_validate(
            read_json(directory / f"without-{group}-seed-{seed}" / "results.json")
        )
        for group, seed in found.runs
    }
    auroc = {
        (row.method, *key): row.value
        for key, results in of_run.items()
        for row in results.rankings
        if row.harmless == "all" and row.toxic == "all"
    }
    assert len(auroc) == 12
    assert auroc == {
        (s.method, s.left_out, s.seed): s.value for s in found.results.scores if s.quantity == "auroc"
    }
    summaries = {row.method: row for row in found.results.summaries if row.quantity == "auroc"}
    assert list(summaries) == ["stl", "dcr", "own"]
    for method, row in summaries.items():
        own = {key[1:]: value for key, value in auroc.items() if key[0] == method}
        assert row.mean == pytest.approx(fmean(own.values()))
        assert row.by_group["second"] == pytest.approx(fmean(own["second", s] for s in (0, 1)))
        assert row.lowest == min(own.values())
        gains = [fmean(own[g, s] - auroc["stl", g, s] for g in ("first", "second")) for s in (0, 1)]
        assert row.difference == pytest.approx(fmean(gains))
        if method != "stl":
            assert gains[0] != pytest.approx(gains[1])
            expected = ttest_1samp(gains, 0).confidence_interval()
            assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
    assert {(s.quantity, s.level) for s in found.results.scores} >= {
        ("compliance", 0.9),
        ("strict_compliance", 0.8),
    }

    again = run_left_out(recipe, directory)
    assert again.results == found.results
    assert sum(run.stages_run for run in again.runs.values()) == 0


@pytest.mark.slow
def test_a_stage_that_no_group_changes_is_done_once(content, tmp_path):
    found = run_left_out(parse_recipe(content, "tiny"), tmp_path / "out")
    stages = [path.name.partition("-")[0] for path in (tmp_path / "out" / "stages").iterdir()]
    assert stages.count("align") == 2 + 8  # `stl` once a seed; `dcr` and `own` once a seed and group
    assert stages.count("refine") == 8
    assert len(found.runs) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"leave_out": {"first": ["unknown.jsonl"]}}, "does not train on"),
        ({"leave_out": {"a b": ["x"]}}, "leave_out"),
        ({"leave_out": {"empty": []}}, "leave_out"),
        ({"evaluate": {"rejection": False}}, "leave `rejection: false` out"),
        ({"evaluate": {"suite": "quick"}}, "leave `suite` out"),  # training may see its sets
    ],
)
def test_a_group_that_means_nothing_is_a_sentence(content, tmp_path, change, said):
    change = {key: {**content[key], **value} if key == "evaluate" else value for key, value in change.items()}
    with pytest.raises(RecipeError, match=said):
        run_left_out(parse_recipe({**content, **change}, "tiny"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_benchmarks_of_one_label_are_found_before_the_first_stage(content, tmp_path):
    (first,) = content["leave_out"]["first"]
    toxic = {**content["evaluate"], "benchmarks": [{"set": first, "label": "toxic"}]}
    recipe = parse_recipe({**content, "leave_out": {"first": [first]}, "evaluate": toxic}, "tiny")
    with pytest.raises(RecipeError, match="Without first there are no benchmarks of both"):
        run_left_out(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_left_to_train_on_or_to_measure(content):
    (general,) = [content["data"]["general"]]
    recipe = parse_recipe({**content, "leave_out": {"all": [general]}}, "tiny")
    with pytest.raises(RecipeError, match="no benchmark is made of"):
        without(recipe, "all", 0)
    measured = {**content["evaluate"], "benchmarks": [general, *content["evaluate"]["benchmarks"]]}
    recipe = parse_recipe({**content, "leave_out": {"all": [general]}, "evaluate": measured}, "tiny")
    with pytest.raises(RecipeError, match=r"nothing under `data\.general`"):
        without(recipe, "all", 0)


def test_it_is_not_taken_for_a_single_run(content, tmp_path):
    with pytest.raises(RecipeError, match="run_left_out"):
        run_recipe(parse_recipe({**content, "seeds": []}, "tiny"), tmp_path / "out")
    with pytest.raises(RecipeError, match="has no `leave_out`; run it with `run_recipe`"):
        run_left_out(parse_recipe({**content, "seeds": [], "leave_out": {}}, "tiny"), tmp_path / "out")


def test_the_command_says_how_methods_fare_on_what_was_left_out(content, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(parse_recipe(content, "tiny").to_yaml())
    out = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out")])
    assert out.exit_code == 0, out.output
    words = " ".join(out.output.split())
    assert "Discernment AUROC" in words
    assert "Without second, seed 1. Report:" in words
    rows = (tmp_path / "out/tables/left_out.csv").read_text().splitlines()
    assert rows[0].startswith("method,left_out,seed,quantity")
    assert len(rows) > 12
