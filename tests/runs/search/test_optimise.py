"""A search over a recipe of a tiny model: shared stages, interruptions, failures, pruning, and what it leaves."""

import json
import statistics
import sys

import pytest
import yaml
from filelock import FileLock

from discernment.errors import ModelError, RecipeError, RunError
from discernment.evaluation.results import Results
from discernment.files import read_json
from discernment.reporting.run_files import read_run
from discernment.runs.recipe import read_recipe
from discernment.runs.run import run_recipe
from discernment.runs.search.optimise import run_sweep
from discernment.runs.search.sweep import SweepResults, read_sweep
from discernment.runs.stages import Quiet
from noted import Noted
from tiny import make_benign, make_prompts


class Stop(Quiet):
    """Hears every stage, and at the one called `at` ends the process, as Ctrl-C or a kill would."""

    def __init__(self, at=None, after=0):
        self.at, self.after, self.heard = at, after, []

    def stage(self, name, owner, *, reused):
        self.heard.append((name, owner, reused))
        if (name, owner) == self.at and len(self.heard) > self.after:
            raise KeyboardInterrupt

    def done(self, name, owner):
        return self.heard.count((name, owner, False))


@pytest.fixture
def write(model_folder, tmp_path):
    pairs, benign = tmp_path / "pairs.jsonl", tmp_path / "benign.jsonl"
    make_prompts(4).to_jsonl(pairs)
    make_benign(4).to_jsonl(benign)
    recipe = {
        "model": str(model_folder()),
        "data": {"general": str(benign), "safety": str(pairs), "contrast": str(pairs)},
        "refine": {"layer": 2, "steps": 1, "batch_size": 4},
        "align": {"batch_size": 8, "epochs": 0.5, "learning_rate": 3e-3},
        "methods": ["base", "stl"],
        "evaluate": {
            "max_new_tokens": 2,
            "unscored_limit": 1,  # a tiny model says nothing that can be read
            "batch_size": 16,
            "openings": ["Sorry"],
            "benchmarks": [{"set": str(pairs), "name": "pairs"}],
        },
    }

    def make(recipe=recipe, **changes):
        content = {
            "name": "tiny",
            "recipe": recipe,
            "space": {"align.learning_rate": [1e-4, 1e-3, 1e-2]},
            "objectives": [{"auroc": "stl"}],
            "sampler": "grid",
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return read_sweep(path)

    make.recipe = recipe
    return make


def run_of(directory, trial, seed=0):
    return directory / "trials" / f"{trial.number}-seed-{seed}"


def aurocs(run, method):
    results = Results.model_validate(read_json(run / "results.json"))
    return [ranking.value for ranking in results.rankings if ranking.method == method]


def worth(results, by_number=False):
    """What must not depend on interruptions: everything but the time; in the order of ends, or of numbers."""
    trials = sorted(results.trials, key=lambda trial: trial.number) if by_number else results.trials
    return [trial.model_copy(update={"seconds": 0.0}) for trial in trials]


def test_a_grid_is_covered_and_the_stages_are_shared(write, tmp_path):
    sweep = write(
        {**write.recipe, "methods": ["stl", "dcr"]},
        space={"refine.layer": [1, 3]},
        objectives=[{"auroc": "dcr"}],
    )
    directory, heard, said = tmp_path / "out", Stop(), []

    def on_trial(so_far, planned):
        said.append((len(so_far.trials), planned))
        if len(said) == 1:
            (directory / "best_of_mine.yaml").write_text("a: 1")
            (directory / "best-7.yaml").write_text("of an earlier call")

    results = run_sweep(sweep, directory, reporter=heard, on_trial=on_trial)
    assert said == [(1, 2), (2, 2)]
    assert {trial.parameters["refine.layer"] for trial in results.trials} == {1, 3}
    assert [trial.state for trial in results.trials] == ["complete"] * 2
    # stl does not depend on the layer: it is aligned and evaluated once, dcr twice.
    assert [heard.done(stage, "stl") for stage in ("align", "evaluate")] == [1, 1]
    assert [heard.done(stage, "dcr") for stage in ("refine", "align", "evaluate")] == [2, 2, 2]
    assert len(list((directory / "stages").iterdir())) == 8

    assert SweepResults.model_validate(read_json(directory / "sweep.json")) == results
    for trial in results.trials:
        run = run_of(directory, trial)
        recipe = read_recipe(run / "recipe.yaml")
        assert recipe.options(recipe.methods[1]).refine.layer == trial.parameters["refine.layer"]
        assert trial.values == aurocs(run, "dcr")
        assert read_run(run).samples.keys() == {"stl", "dcr"}
    assert {p.name for p in directory.glob("best*.yaml")} == {"best.yaml", "best_of_mine.yaml"}
    (best,) = results.best
    assert best.values == max(trial.values for trial in results.trials)
    # The best recipe is a recipe, and replays the trial without doing anything.
    assert run_recipe(read_recipe(directory / "best.yaml"), run_of(directory, best)).stages_run == 0

    quiet = Stop()
    assert run_sweep(sweep, directory, reporter=quiet) == results
    assert quiet.heard == []


def test_an_interrupted_trial_is_done_again_and_its_stages_are_taken(write, tmp_path):
    sweep, directory = write(space={"align.learning_rate": [1e-3, 1e-2]}), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, directory, reporter=Stop(("evaluate", "stl")))
    assert not (directory / "sweep.json").exists()
    with (directory / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code": 5, "work')  # killed while it was writing
    heard = Stop()
    results = run_sweep(sweep, directory, reporter=heard)
    assert [reused for _, _, reused in heard.heard] == [True, True, False, True, False, False]
    assert {trial.parameters["align.learning_rate"] for trial in results.trials} == {1e-3, 1e-2}
    assert [(trial.number, trial.state) for trial in results.trials] == [(0, "complete"), (1, "complete")]


def test_an_interrupted_search_proposes_what_it_would_have(write, tmp_path):
    # The limit changes no stage, so that every trial after the first is a look at what is there.
    sweep = write(
        {**write.recipe, "methods": ["base"]},
        space={"evaluate.unscored_limit": {"low": 0.99, "high": 1.0}, "align.epochs": [1, 2]},
        objectives=[{"auroc": "base"}],
        sampler="tpe",
        trials=13,  # Optuna begins to use what it has seen after the tenth
    )
    sweep = sweep.model_copy(update={"recipe": sweep.recipe_at({"evaluate.unscored_limit": 1.0}, "r", 0)})
    whole = run_sweep(sweep, tmp_path / "whole")
    broken = tmp_path / "broken"
    for after in (2, 9, 0):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, broken, reporter=Stop(("evaluate", "base"), after))
    results = run_sweep(sweep, broken)
    assert worth(results) == worth(whole)
    assert len({trial.parameters["evaluate.unscored_limit"] for trial in results.trials}) == 13
    assert worth(run_sweep(sweep, broken, trials=14))[:13] == worth(whole)


def test_several_objectives_leave_the_pareto_front(write, tmp_path):
    directory = tmp_path / "out"
    results = run_sweep(write(objectives=[{"auroc": "stl"}, {"seconds": "stl"}]), directory)
    points = {trial.number: trial.values for trial in results.trials}
    assert len(points) == 3
    front = {
        n
        for n, (auroc, seconds) in points.items()
        if not any(a >= auroc and s <= seconds and (a, s) != (auroc, seconds) for a, s in points.values())
    }
    assert {trial.number for trial in results.best} == front
    assert {path.name for path in directory.glob("best*.yaml")} == {f"best-{n}.yaml" for n in front}
    for trial in results.trials:
        run = run_of(directory, trial)
        assert trial.values[:1] == aurocs(run, "stl")
        stages = read_json(run / "manifest.json")["stages"].values()
        assert trial.values[1:] == [stage["seconds"] for stage in stages if stage["name"] == "align"]
        assert (
            trial.parameters["align.learning_rate"] == read_recipe(run / "recipe.yaml").align["learning_rate"]
        )


def test_a_trial_that_fails_is_kept_with_its_sentence(write, tmp_path):
    sweep = write(
        space={"align.learning_rate": [1e-3, 1e12], "align.max_gradient_norm": [1e12], "align.warmup": [0]}
    )
    results = run_sweep(sweep, tmp_path / "out")
    by_rate = {trial.parameters["align.learning_rate"]: trial for trial in results.trials}
    assert (by_rate[1e-3].state, by_rate[1e12].state) == ("complete", "failed")
    assert by_rate[1e12].values is None
    assert by_rate[1e12].error.endswith(".")
    assert results.best == [by_rate[1e-3]]
    heard = Stop()
    assert run_sweep(sweep, tmp_path / "out", reporter=heard) == results  # it is not tried again
    assert heard.heard == []


def test_what_is_not_the_fault_of_a_trial_ends_the_sweep_and_it_is_done_again(write, tmp_path):
    sweep = write(
        {**write.recipe, "methods": ["base"]},
        space={"evaluate.max_new_tokens": [1, 2]},
        objectives=[{"auroc": "base"}],
    )
    whole, directory = run_sweep(sweep, tmp_path / "whole"), tmp_path / "out"
    run = directory / "trials/1-seed-0"
    run.mkdir(parents=True)
    for _ in range(2):
        with FileLock(run / "run.lock"), pytest.raises(RunError, match="is in use by another process"):
            run_sweep(sweep, directory)
    results = run_sweep(sweep, directory)
    assert [trial.state for trial in results.trials] == ["complete"] * 2
    assert worth(results) == worth(whole)


def test_the_files_are_written_although_all_trials_were_done_before(write, tmp_path):
    sweep = write(
        {**write.recipe, "methods": ["base"]},
        space={"evaluate.max_new_tokens": [1]},
        objectives=[{"auroc": "base"}],
    )
    directory, heard = tmp_path / "out", Stop()
    file = directory / "sweep.json"
    (file / "in the way").mkdir(parents=True)
    (directory / "trials").mkdir()
    with pytest.raises(OSError):  # as a full disk would end it, after Optuna was told
        run_sweep(sweep, directory)
    (file / "in the way").rmdir()
    file.rmdir()
    results = run_sweep(sweep, directory, reporter=heard)
    assert heard.heard == []
    assert len(results.best) == 1
    assert SweepResults.model_validate(read_json(file)) == results
    assert read_recipe(directory / "best.yaml").name == "tiny-0"


def test_fewer_trials_than_there_are_begin_none(write, tmp_path):
    sweep = write(
        {**write.recipe, "methods": ["base"]},
        space={"evaluate.max_new_tokens": [1, 2, 3]},
        objectives=[{"auroc": "base"}],
    )
    results, journal, heard = run_sweep(sweep, tmp_path / "out"), tmp_path / "out/journal.log", Stop()
    assert [trial.number for trial in results.trials] == [0, 1, 2]
    # As several trials at a time leave it where those with the lowest numbers had not ended.
    text = journal.read_text()
    for number in (0, 1):
        assert text.count(f'"number":{number}}}') == 1
        text = text.replace(f'"number":{number}}}', f'"number":{number + 5}}}')
    journal.write_text(text)
    results = run_sweep(sweep, tmp_path / "out", trials=2, reporter=heard)
    assert [trial.number for trial in results.trials] == [5, 6, 2]
    assert heard.heard == []


def test_a_value_is_the_mean_over_the_seeds(write, tmp_path):
    sweep = write(space={"align.learning_rate": [0.1]}, seeds=[3, 4])
    (trial,) = run_sweep(sweep, tmp_path / "out").trials
    (third,), (fourth,) = (aurocs(run_of(tmp_path / "out", trial, seed), "stl") for seed in (3, 4))
    assert third != fourth
    assert trial.values == [pytest.approx((third + fourth) / 2)]
    assert read_recipe(tmp_path / "out/best.yaml").seed == 3


def test_bad_trials_are_pruned_after_their_first_seed(write, tmp_path):
    # The base model under different system messages: each is worth something else, with every seed the same.
    systems = [
        f"Say {word}." for word in ("sorry", "sure", "bread", "process", "weather", "editor", "letter")
    ]
    sweep = write(
        {**write.recipe, "methods": ["base"]},
        space={"model.system": systems},
        objectives=[{"auroc": "base"}],
        seeds=[3, 4],
    )
    results = run_sweep(sweep, tmp_path / "out")
    values = [aurocs(run_of(tmp_path / "out", trial, 3), "base")[0] for trial in results.trials]
    assert len(values) == 7
    assert [trial.values for trial in results.trials] == [[pytest.approx(value)] for value in values]
    # Optuna's rule: below the median of the earlier trials, once five are complete.
    states = []
    for number, value in enumerate(values):
        pruned = states.count("complete") >= 5 and value < statistics.median(values[:number])
        states.append("pruned" if pruned else "complete")
    assert [trial.state for trial in results.trials] == states
    assert "pruned" in states
    for trial in results.trials:
        assert run_of(tmp_path / "out", trial, 4).exists() == (trial.state == "complete")


def test_nothing_is_chosen_on_a_test_split(write, tmp_path):
    test = tmp_path / "test.jsonl"
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    test.write_text("".join(json.dumps({**row, "split": "test"}) + "\n" for row in rows))
    evaluate = {**write.recipe["evaluate"], "benchmarks": [str(test)]}
    recipe = {**write.recipe, "methods": ["base"], "evaluate": evaluate}
    one = {"space": {"align.epochs": [1]}, "objectives": [{"auroc": "base"}]}
    with pytest.raises(
        RecipeError, match=r"of which 8 prompts are of the test split; choose on the validation"
    ):
        run_sweep(write(recipe, **one), tmp_path / "out")
    assert not (tmp_path / "out/stages").exists()
    assert len(run_sweep(write(recipe, **one, allow_test=True), tmp_path / "out").trials) == 1


def test_mistakes_are_found_before_the_first_trial(write, tmp_path, monkeypatch):
    directory = tmp_path / "out"
    deep = write({**write.recipe, "methods": ["dcr", "stl"]}, space={"refine.layer": [1, 9]})
    with pytest.raises(ModelError, match="Layer 9 is out of range: the model has 4 layers"):
        run_sweep(deep, directory)
    assert not (directory / "journal.log").exists()
    cheap = {"recipe": {**write.recipe, "methods": ["base"]}, "objectives": [{"auroc": "base"}]}
    with FileLock(directory / "sweep.lock"), pytest.raises(RunError, match="is in use by another process"):
        run_sweep(write(**cheap), directory)
    run_sweep(write(**cheap), directory, trials=1)
    with pytest.raises(RunError, match="holds trials of another sweep; name another with --out"):
        run_sweep(write(**cheap, space={"align.epochs": [1]}), directory)
    assert len(run_sweep(write(**cheap, trials=2), directory).trials) == 2  # which is the same search
    told = {**cheap, "recipe": {**cheap["recipe"], "track": []}}
    assert len(run_sweep(write(**told, trials=2), directory).trials) == 2  # nor do trackers make another
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(RecipeError, match=r"A sweep needs `pip install 'discernment\[sweep\]'`"):
        run_sweep(write(**cheap), directory)


def test_trials_on_other_prompts_are_not_set_beside_those_that_there_are(write, tmp_path):
    sweep, benign = write(), tmp_path / "benign.jsonl"
    run_sweep(sweep, tmp_path / "out", trials=1)
    before = benign.read_text()
    benign.write_text(
        before + before.replace('"id": "', '"id": "other-').replace('"prompt": "', '"prompt": "Other: ')
    )
    with pytest.raises(RunError, match="The prompts, the model or the judge have changed since the trials"):
        run_sweep(sweep, tmp_path / "out", trials=2)
    benign.write_text(before)
    assert len(run_sweep(sweep, tmp_path / "out", trials=2).trials) == 2


def test_a_damaged_journal_is_moved_away_and_nothing_is_lost(write, tmp_path):
    sweep = write(
        {**write.recipe, "methods": ["base"]},
        space={"evaluate.max_new_tokens": [1, 2]},
        objectives=[{"auroc": "base"}],
    )
    results = run_sweep(sweep, tmp_path / "out")
    journal = tmp_path / "out/journal.log"
    lines = journal.read_bytes().split(b"\n")
    assert len(lines) > 4
    for damage in (b"\0" * 80, b"null", b"[]", b"{}"):
        journal.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]))
        with pytest.raises(
            RunError, match=r"journal\.log is damaged; move it away and give the command again"
        ):
            run_sweep(sweep, tmp_path / "out")
    journal.rename(tmp_path / "elsewhere")
    heard = Stop()
    assert worth(run_sweep(sweep, tmp_path / "out", reporter=heard)) == worth(results)
    assert heard.heard and all(reused for _, _, reused in heard.heard)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_side_by_side_are_those_of_one_after_the_other(write, tmp_path):
    sweep = write(
        {**write.recipe, "methods": ["base", "stl"]},
        space={"align.learning_rate": [1e-4, 1e-3, 1e-2, 1e12], "align.max_gradient_norm": [1e12]},
        seeds=[3, 4],
    )
    heard, notes, said = Noted(tmp_path / "heard"), Noted(tmp_path / "log"), []
    alone = run_sweep(sweep, tmp_path / "alone", reporter=heard)
    both = run_sweep(
        sweep,
        tmp_path / "both",
        reporter=notes,
        on_trial=lambda r, n: said.append((r.trials[-1].number, n)),
        jobs=2,
    )
    assert worth(both, by_number=True) == worth(alone)
    assert len(both.trials) == 4
    assert "failed" in {trial.state for trial in both.trials}
    assert said == [(trial.number, 4) for trial in both.trials]  # as they ended
    made = {path.name for path in (tmp_path / "both/stages").glob("*") if path.suffix != ".part"}
    assert made == {path.name for path in (tmp_path / "alone/stages").glob("*") if path.suffix != ".part"}
    assert len(heard.begun()) > len(made)  # that of the failed trial is not there
    assert stages_of(notes) == stages_of(heard)  # none twice


def stages_of(notes):
    return sorted(stage for _, _, stage in notes.begun())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_interrupted_side_by_side_goes_on_with_the_trials_that_are_missing(write, tmp_path):
    sweep = write(space={"align.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]})
    alone = run_sweep(sweep, tmp_path / "alone")

    def stop(results, planned):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, tmp_path / "both", on_trial=stop, jobs=2)
    (first,) = read_json(tmp_path / "both/sweep.json")["trials"]
    both = run_sweep(sweep, tmp_path / "both", jobs=2)
    assert both.trials[0].number == first["number"]
    assert worth(both, by_number=True) == worth(alone)
    assert worth(run_sweep(sweep, tmp_path / "both")) == worth(both)
