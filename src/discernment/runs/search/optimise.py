"""Running a sweep: Optuna proposes options, a run of the recipe says what they are worth.

Trials that need the same stage share it: each has a run directory of its own, and all of these have one `stages`. Several
trials at a time are asked for and told here, one after the other; what their runs need is done in other processes.
"""

from __future__ import annotations

import re
import statistics
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from discernment.disk import is_full
from discernment.errors import DataError, DiscernmentError, RecipeError, RunError
from discernment.files import (
    append_json_lines,
    content_hash,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from discernment.models.loading import model_fingerprint
from discernment.models.model_spec import ModelSpec
from discernment.prompts import Split
from discernment.runs.directory import claim
from discernment.runs.fleet.dispatch import Fleet
from discernment.runs.fleet.engine import Engine
from discernment.runs.parallel import do_task, fleet_for, goes_elsewhere, tasks_of
from discernment.runs.preparation import prepare
from discernment.runs.recipe import Recipe
from discernment.runs.run import RunSummary, run_recipe
from discernment.runs.search.objective import objective_value
from discernment.runs.search.sweep import State, Sweep, SweepResults, SweepTrial, Value
from discernment.runs.stages import Quiet, Reporter, share_stages

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial
OnTrial = Callable[[SweepResults, int], None]

STATES: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""What Optuna calls the states of a trial that ended, and what we do."""

NUMBER = "number"
"""Under which Optuna keeps our number of a trial: its own numbers count interrupted attempts."""
BEST = re.compile(r"best(-\d+)?\.yaml")
"""The recipes of the best trials."""


class _Point(NamedTuple):
    """A trial that was asked for: Optuna's, our number of it, and the options that it proposes."""

    trial: Trial
    number: int
    parameters: dict[str, Value]


class _Worth(NamedTuple):
    """What came of a trial: one number an objective, or None if it was pruned; or why it failed."""

    values: list[float] | None
    error: DiscernmentError | None = None


def run_sweep(
    sweep: Sweep,
    directory: Path,
    *,
    trials: int | None = None,
    reporter: Reporter | None = None,
    on_trial: OnTrial | None = None,
    verify: bool = False,
    jobs: int = 1,
    engine: Engine | None = None,
) -> SweepResults:
    """Search until there are as many trials as asked for, those of earlier calls included.

    The directory gets `sweep.json`, the best recipe as `best.yaml` (with several objectives `best-N.yaml` for every
    trial N on the Pareto front), `trials/N-seed-S` with a run each, `stages` and Optuna's `journal.log`. An
    interrupted trial is done again and its finished stages are taken. The same sweep proposes the same options,
    whether or not it was interrupted; with several jobs, `tpe` does so for its first ten trials alone, because what it
    proposes after these depends on which trials have ended.

    Args:
        sweep: What to search over.
        directory: The sweep's directory.
        trials: How many trials there shall be, all together; the sweep's own number by default.
        reporter: Hears which stages are run.
        on_trial: Called after every trial with the results up to then, and how many trials there shall be.
        verify: As in `run_recipe`.
        jobs: How many trials are worked on at the same time.
        engine: Starts the processes of these, as in `run_recipe`.

    Raises:
        RecipeError: If the extra `sweep` is not installed, the recipe evaluates on a test split and the sweep does
            not allow that, or the recipe cannot be run somewhere in the space.
        RunError: If the directory is in use, holds another sweep, or its journal is damaged; or if a trial cannot
            be run, for example because the engine takes no job, which is not the trial's fault.
        DiskError: If the disk is full, which is not the trial's fault either.
        DiscernmentError: If the data or the model is wrong.
    """
    try:
        import optuna
    except ImportError:
        raise RecipeError("A sweep needs `pip install 'discernment[sweep]'`.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with claim(directory, "sweep"):
        search = _Search(sweep, directory, reporter, verify=verify)
        if not goes_elsewhere(jobs, engine):
            return search.run(sweep.planned(trials), on_trial)
        with fleet_for(directory, engine, jobs) as fleet:
            return search.run(sweep.planned(trials), on_trial, fleet)


class _Search:
    """One call of a sweep on its directory."""

    def __init__(self, sweep: Sweep, directory: Path, reporter: Reporter | None, *, verify: bool) -> None:
        self.sweep = sweep
        self.verify = verify
        self.several = len(sweep.objectives) > 1
        self.directory = directory
        self.reporter = reporter
        self.here = threading.Lock()
        read: list[str] = []
        of_model = cache(_model_anywhere)
        for values in sweep.samples():
            recipe = sweep.recipe_at(values, sweep.name, sweep.every_seed[0])
            if not sweep.allow_test:
                _keep_off_test(recipe)
            read += [prepare(recipe).fingerprint(of_model), recipe.evaluate.judge.fingerprint]
        self.study = _open(sweep, directory, content_hash(read))

    def run(self, planned: int, on_trial: OnTrial | None, fleet: Fleet | None = None) -> SweepResults:
        """Do the trials that there are not yet; those of a fleet are told as they end."""
        results = self.results()
        there = {trial.number for trial in results.trials}
        missing = [number for number in range(planned) if number not in there][: max(0, planned - len(there))]
        if results.trials:  # the last call may have ended between a trial and its files
            self.write(results)
        for point, worth in self.tried((self.ask(number) for number in missing), fleet):
            self.tell(point.trial, worth)
            results = self.results()
            self.write(results)
            if on_trial:
                on_trial(results, planned)
        return results

    def tried(self, points: Iterator[_Point], fleet: Fleet | None) -> Iterator[tuple[_Point, _Worth]]:
        """What each point is worth; the next is asked for when the one before was told, or a process is free."""

        def work(point: _Point) -> _Worth:
            try:
                return _Worth(self.worth(point, fleet))
            except RunError:  # a directory, a machine or an engine, which is not the trial's fault
                raise
            except DiscernmentError as error:
                if is_full(error):  # nor is this
                    raise
                return _Worth(None, error)

        if fleet is not None:
            yield from fleet.as_they_end(work, points)
        else:
            for point in points:
                yield point, work(point)

    def tell(self, trial: Trial, worth: _Worth) -> None:
        """Let Optuna know what came of a trial."""
        from optuna.trial import TrialState

        if worth.error is not None:
            trial.set_user_attr("error", str(worth.error))
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, worth.values, state=None if worth.values else TrialState.PRUNED)

    def ask(self, number: int) -> _Point:
        """The next trial; what it proposes depends on its number and the finished trials alone."""
        from optuna.samplers import RandomSampler, TPESampler

        # A sampler that was made once would begin its sequence again in every call of the sweep.
        seed = int(np.random.SeedSequence((self.sweep.seed, number)).generate_state(1)[0])
        self.study.sampler = (TPESampler if self.sweep.sampler == "tpe" else RandomSampler)(seed=seed)
        if self.sweep.sampler == "grid":
            # Optuna's GridSampler would pass over the point of an interrupted trial.
            self.study.enqueue_trial(self.sweep.grid()[number])
        trial = self.study.ask()
        trial.set_user_attr(NUMBER, number)
        parameters = {key: dimension.suggest(trial, key) for key, dimension in self.sweep.space.items()}
        return _Point(trial, number, parameters)

    def worth(self, point: _Point, fleet: Fleet | None) -> list[float] | None:
        """The objectives at a trial's options, means over the seeds.

        Returns:
            One number an objective; None if the first seeds are so bad that the others need not be run.

        Raises:
            DiscernmentError: If a run fails.
        """
        seeds = self.sweep.every_seed
        found: list[list[float]] = []
        means: list[float] = []
        for step, seed in enumerate(seeds):
            directory = self.run_directory(point.number, seed)
            recipe = self.recipe(point.number, point.parameters, seed)
            summary = self.run_trial(recipe, directory, fleet)
            manifest = read_json(directory / "manifest.json")
            found.append([objective_value(summary.results, manifest, o) for o in self.sweep.objectives])
            means = [statistics.fmean(values) for values in zip(*found, strict=True)]
            if len(means) == 1 and len(seeds) > 1:  # Optuna does not prune for several objectives
                point.trial.report(means[0], step)
                if step + 1 < len(seeds) and point.trial.should_prune():
                    return None
        return means

    def run_trial(self, recipe: Recipe, directory: Path, fleet: Fleet | None) -> RunSummary:
        """Run a trial's recipe; a fleet does its stages before, so that they are found done here."""
        reporter = self.reporter
        if fleet is not None:
            tasks, told = tasks_of({directory: recipe}), reporter or Quiet()
            ran = [do_task(fleet, task, told, verify=self.verify) for task in tasks]
            reporter = reporter if None in ran else None
        with self.here:  # one at a time, in whichever thread
            return run_recipe(recipe, directory, reporter, verify=self.verify)

    def recipe(self, number: int, parameters: dict[str, Value], seed: int) -> Recipe:
        return self.sweep.recipe_at(parameters, f"{self.sweep.name}-{number}", seed)

    def run_directory(self, number: int, seed: int) -> Path:
        """A trial's run directory, whose stages are those of all trials."""
        directory = self.directory / "trials" / f"{number}-seed-{seed}"
        share_stages(directory, self.directory / "stages")
        return directory

    def results(self) -> SweepResults:
        """All trials that ended."""
        study = self.study
        complete = _in_state(study, "COMPLETE")
        front = study.best_trials if self.several else [study.best_trial] if complete else []
        best = {trial.number for trial in front}
        # An interrupted trial is marked as failed as well, without a reason.
        known = [t for t in _in_state(study, *STATES) if t.state.name != "FAIL" or "error" in t.user_attrs]
        # Those of older versions, which were done one after the other, have no number.
        numbered = [(trial.user_attrs.get(NUMBER, place), trial) for place, trial in enumerate(known)]
        ended = sorted(numbered, key=lambda pair: pair[1].datetime_complete or datetime.max)
        return SweepResults(
            name=self.sweep.name,
            sampler=self.sweep.sampler,
            seeds=self.sweep.every_seed,
            space=self.sweep.space,
            objectives=self.sweep.objectives,
            trials=[
                SweepTrial(
                    number=number,
                    state=STATES[trial.state.name],
                    parameters=trial.params,
                    values=trial.values if trial.state.name != "FAIL" else None,
                    seconds=round(trial.duration.total_seconds(), 2) if trial.duration else 0.0,
                    error=trial.user_attrs.get("error"),
                    best=trial.number in best,
                )
                for number, trial in ended
            ],
        )

    def write(self, results: SweepResults) -> None:
        """Leave the numbers and the best recipes."""
        write_json(self.directory / "sweep.json", results.to_json())
        recipes = {
            f"best-{trial.number}.yaml" if self.several else "best.yaml": trial for trial in results.best
        }
        for name, trial in recipes.items():
            recipe = self.recipe(trial.number, trial.parameters, self.sweep.every_seed[0])
            write_text(self.directory / name, recipe.to_yaml())
        for path in self.directory.glob("best*.yaml"):  # of an earlier call; others may lie here too
            if path.name not in recipes and BEST.fullmatch(path.name):
                path.unlink()


def _open(sweep: Sweep, directory: Path, read: str) -> Study:
    """The study in a directory, new or as it was left.

    Args:
        sweep: The sweep.
        directory: Its directory.
        read: A hash of what its trials read: prompts, models, judges.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage
    from optuna.trial import TrialState

    journal = directory / "journal.log"
    append_json_lines(journal, ())  # cuts off a line that was being written when the last call was killed
    _check_journal(journal)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="sweep",
        directions=["maximize" if o.maximise else "minimize" for o in sweep.objectives],
        pruner=optuna.pruners.MedianPruner(),
        load_if_exists=True,
    )
    # Without what no trial's numbers depend on.
    content = sweep.model_dump(
        mode="json", exclude_defaults=True, exclude={"trials": True, "recipe": {"track"}}
    )
    fingerprint = content_hash(content)
    if study.user_attrs.get("sweep", fingerprint) != fingerprint:
        raise RunError(f"The directory {directory} holds trials of another sweep; name another with --out.")
    if study.user_attrs.get("read", read) != read:
        raise RunError(
            f"The prompts, the model or the judge have changed since the trials in {directory}, so that new ones would not compare with them; "
            "name another directory with --out."
        )
    study.set_user_attr("sweep", fingerprint)
    study.set_user_attr("read", read)
    for trial in _in_state(study, "RUNNING"):
        study.tell(trial.number, state=TrialState.FAIL)  # interrupted; `ask` proposes the same again
    while _in_state(study, "WAITING"):  # interrupted before it was asked for
        study.tell(study.ask(), state=TrialState.FAIL)
    return study


def _model_anywhere(spec: ModelSpec) -> str:
    """A hash of a model that does not depend on what the machine can compute in."""
    return model_fingerprint(spec.model_copy(update={"device": "cpu", "dtype": "float32"}))


def _check_journal(journal: Path) -> None:
    """See that Optuna can read its journal.

    Raises:
        RunError: If it cannot.
    """
    try:
        whole = all(isinstance(row, dict) and "op_code" in row for _, row in read_json_lines(journal))
    except DataError:
        whole = False
    if not whole:
        raise RunError(
            f"{journal} is damaged; move it away and give the command again: the trials are the same, and take the stages "
            "that there are."
        )


def _in_state(study: Study, *states: str) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials() if trial.state.name in states]


def _keep_off_test(recipe: Recipe) -> None:
    """See that nothing is chosen on prompts of a test split.

    Raises:
        RecipeError: If a benchmark has such prompts.
    """
    for benchmark in recipe.evaluate.sets:
        count = sum(prompt.split is Split.TEST for prompt in benchmark.load())
        if count:
            raise RecipeError(
                f"The recipe evaluates on {benchmark.name or benchmark.set}, of which {count} prompts are of the test "
                "split; choose on the validation split, or write `allow_test: true` into the sweep."
            )
