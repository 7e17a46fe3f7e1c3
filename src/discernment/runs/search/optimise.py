"""Running a sweep: Optuna proposes options, a run of the recipe says what they are worth.

Trials that need the same stage share it: each has a run directory of its own, and all of these have one `stages`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
from discernment.prompts import Split
from discernment.runs.directory import claim
from discernment.runs.preparation import prepare
from discernment.runs.recipe import Recipe
from discernment.runs.run import run_recipe
from discernment.runs.search.objective import objective_value
from discernment.runs.search.sweep import State, Sweep, SweepResults, SweepTrial, Value
from discernment.runs.stages import Reporter, share_stages

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial
OnTrial = Callable[[SweepResults, int], None]

STATES: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
"""What Optuna calls the states of a trial that ended, and what we do."""


def run_sweep(
    sweep: Sweep,
    directory: Path,
    *,
    trials: int | None = None,
    reporter: Reporter | None = None,
    on_trial: OnTrial | None = None,
    verify: bool = False,
) -> SweepResults:
    """Search until there are as many trials as asked for, those of earlier calls included.

    The directory gets `sweep.json`, the best recipe as `best.yaml` (with several objectives `best-N.yaml` for every
    trial N on the Pareto front), `trials/N-seed-S` with a run each, `stages` and Optuna's `journal.log`. An
    interrupted trial is done again and its finished stages are taken. The same sweep proposes the same options,
    whether or not it was interrupted.

    Args:
        sweep: What to search over.
        directory: The sweep's directory.
        trials: How many trials there shall be, all together; the sweep's own number by default.
        reporter: Hears which stages are run.
        on_trial: Called after every trial with the results up to then, and how many trials there shall be.
        verify: As in `run_recipe`.

    Raises:
        RecipeError: If the extra `sweep` is not installed, the recipe evaluates on a test split and the sweep does
            not allow that, or the recipe cannot be run somewhere in the space.
        RunError: If the directory is in use, holds another sweep, or its journal is damaged.
        DiskError: If the disk is full, which is not the trial's fault.
        DiscernmentError: If the data or the model is wrong.
    """
    try:
        import optuna
    except ImportError:
        raise RecipeError("A sweep needs `pip install 'discernment[sweep]'`.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with claim(directory, "sweep"):
        return _Search(sweep, directory, reporter, verify=verify).run(sweep.planned(trials), on_trial)


class _Search:
    """One call of a sweep on its directory."""

    def __init__(self, sweep: Sweep, directory: Path, reporter: Reporter | None, *, verify: bool) -> None:
        self.sweep = sweep
        self.verify = verify
        self.several = len(sweep.objectives) > 1
        self.directory = directory
        self.reporter = reporter
        for values in sweep.samples():
            recipe = sweep.recipe_at(values, sweep.name, sweep.every_seed[0])
            if not sweep.allow_test:
                _keep_off_test(recipe)
            prepare(recipe)
        self.study = _open(sweep, directory)

    def run(self, planned: int, on_trial: OnTrial | None) -> SweepResults:
        from optuna.trial import TrialState

        results = self.results()
        while (number := len(results.trials)) < planned:
            trial = self.ask(number)
            try:
                values = self.worth(trial, number)
            except DiscernmentError as error:
                if is_full(error):  # which is not the trial's fault
                    raise
                trial.set_user_attr("error", str(error))
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, values, state=None if values else TrialState.PRUNED)
            results = self.results()
            self.write(results)
            if on_trial:
                on_trial(results, planned)
        return results

    def ask(self, number: int) -> Trial:
        """The next trial; what it proposes depends on its number and the finished trials alone."""
        from optuna.samplers import RandomSampler, TPESampler

        # A sampler that was made once would begin its sequence again in every call of the sweep.
        seed = int(np.random.SeedSequence((self.sweep.seed, number)).generate_state(1)[0])
        self.study.sampler = (TPESampler if self.sweep.sampler == "tpe" else RandomSampler)(seed=seed)
        if self.sweep.sampler == "grid" and not _in_state(self.study, "WAITING"):
            # Optuna's GridSampler would pass over the point of an interrupted trial.
            self.study.enqueue_trial(self.sweep.grid()[number])
        return self.study.ask()

    def worth(self, trial: Trial, number: int) -> list[float] | None:
        """The objectives at a trial's options, means over the seeds.

        Returns:
            One number an objective; None if the first seeds are so bad that the others need not be run.

        Raises:
            DiscernmentError: If a run fails.
        """
        parameters = {key: dimension.suggest(trial, key) for key, dimension in self.sweep.space.items()}
        seeds = self.sweep.every_seed
        found: list[list[float]] = []
        means: list[float] = []
        for step, seed in enumerate(seeds):
            recipe = self.recipe(number, parameters, seed)
            directory = self.run_directory(number, seed)
            summary = run_recipe(recipe, directory, self.reporter, verify=self.verify)
            manifest = read_json(directory / "manifest.json")
            found.append([objective_value(summary.results, manifest, o) for o in self.sweep.objectives])
            means = [statistics.fmean(values) for values in zip(*found, strict=True)]
            if len(means) == 1 and len(seeds) > 1:  # Optuna does not prune for several objectives
                trial.report(means[0], step)
                if step + 1 < len(seeds) and trial.should_prune():
                    return None
        return means

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
        ended = [t for t in _in_state(study, *STATES) if t.state.name != "FAIL" or "error" in t.user_attrs]
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
                for number, trial in enumerate(ended)
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
        for path in self.directory.glob("best*.yaml"):
            if path.name not in recipes:
                path.unlink()


def _open(sweep: Sweep, directory: Path) -> Study:
    """The study in a directory, new or as it was left."""
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
    study.set_user_attr("sweep", fingerprint)
    for trial in _in_state(study, "RUNNING"):
        study.tell(trial.number, state=TrialState.FAIL)  # interrupted; `ask` proposes the same again
    return study


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
