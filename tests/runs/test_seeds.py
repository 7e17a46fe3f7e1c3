"""A recipe with several seeds on a tiny model: what is shared, what differs, and that it is done once."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from discernment.errors import RecipeError, RunError
from discernment.evaluation.over_seeds import SeedResults
from discernment.files import read_json, write_json
from discernment.policies.policy import Policy
from discernment.prompts import Label
from discernment.reporting.run_files import read_run
from discernment.reporting.seed_runs import report_seeds
from discernment.reporting.text import MINUS
from discernment.runs.recipe import parse_recipe, read_recipe
from discernment.runs.run import run_recipe
from discernment.runs.search.sweep import Sweep
from discernment.runs.seeds import run_seeds
from discernment.runs.stages import Quiet
from endpoint import PolicyServer, running
from tiny import make_benign, make_prompts


class Stop(Quiet):
    """Hears every stage, and at the `after`-th ends the process, as Ctrl-C would."""

    def __init__(self, after=None):
        self.after, self.heard = after, []

    def stage(self, name, owner, *, reused):
        self.heard.append((name, owner, reused))
        if len(self.heard) == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def content(model_folder, tmp_path):
    pairs, benign = tmp_path / "pairs.jsonl", tmp_path / "benign.jsonl"
    make_prompts(12).to_jsonl(pairs)
    make_benign(12).to_jsonl(benign)
    return {
        "name": "tiny",
        "model": str(model_folder()),
        "seeds": [1, 4],
        "data": {
            "general": [{"set": str(benign), "limit": 2}],
            "safety": [{"set": str(pairs), "label": "toxic", "limit": 2}],
        },
        "align": {"batch_size": 4, "learning_rate": 3e-3},
        "methods": ["base", "stl"],
        "evaluate": {
            "max_new_tokens": 2,
            "unscored_limit": 1,  # a tiny model says nothing that can be read
            "batch_size": 32,
            "openings": ["Sorry"],
            "reference": "base",
            "benchmarks": [{"set": str(pairs), "name": "pairs"}],
        },
    }


def test_a_run_for_each_seed_and_one_base_model(content, tmp_path):
    recipe, directory = parse_recipe(content, "tiny"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_seeds(recipe, directory, Stop(after=5))  # where seed 4 aligns
    assert not (directory / "seeds.json").exists()
    heard = Stop()
    summary = run_seeds(recipe, directory, heard)
    of_seed = [("evaluate", "base"), ("align", "stl"), ("evaluate", "stl")]
    assert [(name, owner) for name, owner, _ in heard.heard] == 2 * of_seed
    assert [reused for _, _, reused in heard.heard] == [True, True, True, True, False, False]
    assert sorted(p.name.split("-")[0] for p in (directory / "stages").iterdir()) == [
        *(["align"] * 2),
        *(["evaluate"] * 3),
    ]

    assert read_recipe(directory / "recipe.yaml") == recipe
    assert list(summary.runs) == [1, 4]
    samples = {seed: read_run(directory / f"seed-{seed}").samples for seed in (1, 4)}
    assert samples == {seed: run.samples for seed, run in summary.runs.items()}
    assert samples[1]["base"] == samples[4]["base"]
    assert samples[1]["stl"] != samples[4]["stl"]
    assert [read_recipe(directory / f"seed-{seed}/recipe.yaml").seed for seed in (1, 4)] == [1, 4]

    assert SeedResults.model_validate(read_json(directory / "seeds.json")) == summary.results
    assert (summary.results.seeds, summary.results.methods) == ([1, 4], ["base", "stl"])
    (row,) = [row for row in summary.results.comparisons if row.quantity == "auroc"]
    rankings = [
        {ranking.method: ranking.value for ranking in run.results.rankings} for run in summary.runs.values()
    ]
    assert row.values == pytest.approx([ranking["stl"] for ranking in rankings])
    assert row.values_against == pytest.approx([ranking["base"] for ranking in rankings])
    assert row.values_against[0] == row.values_against[1]

    written = (directory / "seeds.json").read_bytes()
    moved = directory.rename(tmp_path / "moved")  # the links are relative
    again = run_seeds(recipe, moved)
    assert [run.stages_run for run in again.runs.values()] == [0, 0]
    assert (moved / "seeds.json").read_bytes() == written

    # Another recipe in the same directory takes what it can use, and leaves no result that is not its own.
    report_seeds(moved, reference="stl")
    assert list(moved.glob("seeds-against-stl.*"))
    alone = parse_recipe({k: v for k, v in content.items() if k != "seeds"} | {"methods": ["base"]}, "tiny")
    assert run_recipe(alone, moved).stages_run == 0
    assert not list(moved.glob("seed*"))
    assert read_json(moved / "manifest.json")["name"] == "tiny"


def test_the_page_again_and_against_another_method(content, tmp_path):
    directory = tmp_path / "run"
    found = run_seeds(parse_recipe(content, "tiny"), directory).results
    assert report_seeds(directory) == directory / "seeds.html"
    first = {path: path.read_bytes() for path in directory.glob("**/seeds.*")}
    assert {path.name for path in first} == {"seeds.json", "seeds.html", "seeds.csv", "seeds.md"}
    assert (
        report_seeds(directory, tmp_path / "elsewhere.html", reference="base") == tmp_path / "elsewhere.html"
    )
    assert (tmp_path / "elsewhere.html").read_bytes() == (directory / "seeds.html").read_bytes()

    page = report_seeds(directory, reference="stl")
    assert page == directory / "seeds-against-stl.html"
    assert {path: path.read_bytes() for path in first} == first
    turned = SeedResults.model_validate(read_json(directory / "seeds-against-stl.json"))
    assert (turned.reference, turned.methods) == ("stl", found.methods)
    differences = {(row.quantity, row.benchmark, row.label, row.toxic): row for row in found.comparisons}
    compared = [row for row in turned.comparisons if row.quantity in ("rate", "auroc")]
    assert len(compared) >= 3
    for row in compared:
        there = differences[row.quantity, row.benchmark, row.label, row.toxic]
        assert (row.values, row.values_against) == (there.values_against, there.values)
        assert row.difference == pytest.approx(-there.difference)
    assert f"`base` {MINUS} `stl`" in (directory / "tables/seeds-against-stl.md").read_text("utf-8")
    with pytest.raises(RecipeError, match=r"no method 'dcr' in .*run; there are base, stl"):
        report_seeds(directory, reference="dcr")
    for path in directory.glob("stages/evaluate-*/samples.jsonl"):
        path.rename(path.with_suffix(".away"))
    with pytest.raises(RunError, match=r"There is no file .*seed-1.*samples.jsonl; give `discern run"):
        report_seeds(directory, reference="stl")
    assert report_seeds(directory).is_file()
    numbers = read_json(directory / "seeds.json")
    numbers["comparisons"][0]["values"].pop()
    for broken in ({}, numbers):
        write_json(directory / "seeds.json", broken)
        with pytest.raises(RunError, match="give `discern run` again"):
            report_seeds(directory)


def test_kernel_similarity_and_ability_of_every_seed(content, tmp_path):
    benign = tmp_path / "replies.jsonl"
    make_benign(12).to_jsonl(benign)
    content["evaluate"]["ability"] = str(benign)
    content["diagnose"] = {
        "kernel": {"prompts": content["evaluate"]["benchmarks"][0]["set"], "k": 2, "per_group": 4}
    }
    summary = run_seeds(parse_recipe(content, "tiny"), tmp_path / "run")
    found = {(row.measure, row.label, row.method): row for row in summary.results.measures}
    assert len(found) == 6  # two labels of two methods, and for the one that is trained two of ability
    base = found["kernel_similarity", Label.SEEMINGLY_TOXIC, "base"]
    stl = found["kernel_similarity", Label.SEEMINGLY_TOXIC, "stl"]
    assert base.values[0] == base.values[1]
    assert stl.values[0] != stl.values[1]
    assert stl.difference == pytest.approx(stl.mean - base.mean)
    kl = [run.results.abilities[0].kl for run in summary.runs.values()]
    assert found["kl", None, "stl"].values == kl
    assert sum(1 for _ in (tmp_path / "run/stages").glob("diagnose-*")) == 3  # the base model's is shared


def test_what_a_method_lacks_is_there_once_with_its_seeds(content, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    server = PolicyServer(Policy.load(content["model"]))
    with running(server):
        gpt = {"method": "base", "name": "gpt", "options": {"model": server.name}}
        content["methods"] = ["base", gpt]
        summary = run_seeds(parse_recipe(content, "tiny"), tmp_path / "run")
    (lacks,) = summary.results.left_out
    assert (lacks.method, lacks.what, lacks.seeds) == ("gpt", "rejection probability", (1, 4))
    assert lacks.words.endswith(" (seed 1, 4).")
    for run in summary.runs.values():
        (alone,) = run.results.left_out
        assert lacks == alone.model_copy(update={"seeds": (1, 4)})
    assert SeedResults.model_validate(read_json(tmp_path / "run/seeds.json")) == summary.results


def test_a_seed_that_is_dropped_leaves_nothing_behind(content, tmp_path):
    directory = tmp_path / "run"
    run_recipe(parse_recipe({**content, "seeds": []}, "tiny"), directory)
    run_seeds(parse_recipe({**content, "seeds": [1, 4]}, "tiny"), directory)
    assert not (directory / "manifest.json").exists()  # of the run with one seed
    summary = run_seeds(parse_recipe({**content, "seeds": [4, 5]}, "tiny"), directory)
    assert [p.name for p in sorted(directory.glob("seed-*"))] == ["seed-4", "seed-5"]
    assert [run.stages_run for run in summary.runs.values()] == [0, 2]


def test_what_people_made_of_a_seed_stays_when_it_is_dropped(content, tmp_path):
    directory = tmp_path / "run"
    run_seeds(parse_recipe({**content, "seeds": [1, 4]}, "tiny"), directory)
    for seed in (1, 4):
        (directory / f"seed-{seed}" / "audit.jsonl").write_text("labels")
    run_seeds(parse_recipe({**content, "seeds": [4, 5]}, "tiny"), directory)
    assert [p.name for p in (directory / "seed-1").iterdir()] == ["audit.jsonl"]
    assert (directory / "seed-4" / "audit.jsonl").read_text() == "labels"


def test_a_recipe_that_was_changed_in_the_run_is_another_one(content, tmp_path):
    directory = tmp_path / "run"
    run_seeds(parse_recipe({**content, "seeds": [1, 4]}, "tiny"), directory)
    alone = parse_recipe({**content, "seeds": [], "seed": 4}, "tiny")
    (directory / "recipe.yaml").write_text(alone.to_yaml())
    run_recipe(alone, directory)
    assert not (directory / "seeds.json").exists()
    assert not list(directory.glob("seed-*"))


def test_seeds_leave_a_run_of_another_version_alone(content, tmp_path):
    directory = tmp_path / "run"
    run_recipe(parse_recipe({**content, "seeds": []}, "tiny"), directory)
    manifest = read_json(directory / "manifest.json")
    (directory / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    with pytest.raises(RunError, match="holds a run of another version"):
        run_seeds(parse_recipe({**content, "seeds": [1, 4]}, "tiny"), directory)
    assert (directory / "results.json").is_file()


def test_draws_follow_the_seed_unless_a_source_names_its_own(content):
    def drawn(seed, own=None):
        safety = [{**content["data"]["safety"][0], "seed": own}]
        data = parse_recipe({**content, "data": {**content["data"], "safety": safety}}, "tiny").data
        return [p.id for p in data.load(seed).safety]

    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1
    assert {tuple(drawn(seed, own=3)) for seed in range(8)} == {tuple(drawn(3))}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": [0]}, "`seeds` names two or more different seeds; for a single one write `seed`"),
        ({"seeds": [2, 0, 2]}, "`seeds` names two or more different seeds"),
        ({"seed": 0}, "name `seed` or `seeds`, not both"),
        ({"seeds": [-1, 0]}, "`seeds.0`: Input should be greater than or equal to 0"),
    ],
)
def test_seeds_that_make_no_sense(content, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        parse_recipe({**content, **changes}, "tiny")


def test_who_runs_which_recipe(content, tmp_path):
    several = parse_recipe(content, "tiny")
    with pytest.raises(RecipeError, match="has several `seeds`; run it with `run_seeds`"):
        run_recipe(several, tmp_path / "run")
    single = parse_recipe({**content, "seeds": []}, "tiny")
    with pytest.raises(RecipeError, match="has no `seeds`; run it with `run_recipe`"):
        run_seeds(single, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    sweep = {"name": "s", "space": {"align.epochs": [1, 2]}, "objectives": [{"auroc": "stl"}]}
    assert Sweep.model_validate({**sweep, "recipe": single}).every_seed == (0,)
    with pytest.raises(ValueError, match="the `seeds` of a sweep stand beside its `recipe`"):
        Sweep.model_validate({**sweep, "recipe": several})


def test_a_mistake_shows_before_the_first_stage(content, tmp_path):
    make_prompts(12, responses=False).to_jsonl(Path(content["data"]["safety"][0]["set"]))
    heard = Stop()
    with pytest.raises(RecipeError, match="has no response"):
        run_seeds(parse_recipe(content, "tiny"), tmp_path / "run", heard)
    assert heard.heard == []


def test_a_directory_in_use(content, tmp_path):
    recipe = parse_recipe(content, "tiny")
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run/run.lock"),
        pytest.raises(RunError, match=r"run directory .* is in use by another process"),
    ):
        run_seeds(recipe, tmp_path / "run")
