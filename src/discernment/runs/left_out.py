"""Running a recipe once without each group of sources, and measuring on what was left out.

What was chosen on prompts of the sources that training saw, or with one seed, may hold there alone. A group's run trains
on all others and is measured on this one, so that every number is of sources that the training did not know.
"""

from __future__ import annotations

from pathlib import Path

from discernment.errors import RecipeError
from discernment.evaluation.left_out import LeftOutResults, summarize_left_out
from discernment.prompts import Label, PromptSource
from discernment.runs.fleet.engine import Engine
from discernment.runs.recipe import MethodEntry, Recipe
from discernment.runs.run import RunSummary
from discernment.runs.several import Several, run_several
from discernment.runs.stages import Reporter
from discernment.runs.training_data import TrainingData

LeftOutRuns = Several[tuple[str, int], LeftOutResults]
"""What a recipe with `leave_out` left: the run of each group and seed, and the numbers of `left_out.json`."""


def run_left_out(
    recipe: Recipe,
    directory: Path,
    reporter: Reporter | None = None,
    *,
    verify: bool = False,
    jobs: int = 1,
    engine: Engine | None = None,
) -> LeftOutRuns:
    """Run `recipe` once without each group of `leave_out`, with each of its seeds.

    The directory gets `recipe.yaml`, a run `without-GROUP-seed-N` for each group and seed, the `stages` that they share
    and `left_out.json`. An interrupted call goes on where it was.

    Args:
        recipe: A recipe with `leave_out`.
        directory: The directory for all runs.
        reporter: Hears what is going on.
        verify: As in `run_recipe`.
        jobs: How many methods of any run are worked on side by side, each in a process of its own.
        engine: Starts these processes, as in `run_recipe`.

    Raises:
        DiscernmentError: If the recipe has no `leave_out`, or a group names a set that the recipe does not train on, or
            leaves nothing to train on or to measure, or as `run_recipe`.
    """
    if not recipe.leave_out:
        raise RecipeError("The recipe has no `leave_out`; run it with `run_recipe`, as `discern run` does.")

    recipes = of_groups(recipe)
    for (group, _), of_group in recipes.items():
        _check_both_labels(of_group, group)

    def together(runs: dict[tuple[str, int], RunSummary]) -> LeftOutResults:
        return summarize_left_out({key: run.results for key, run in runs.items()}, recipe.leave_out)

    return run_several(
        recipe,
        recipes,
        lambda key: _folder(*key),
        directory,
        "left_out.json",
        together,
        reporter,
        verify=verify,
        jobs=jobs,
        engine=engine,
    )


def _check_both_labels(recipe: Recipe, group: str) -> None:
    asked = {prompt.label for benchmark in recipe.evaluate.benchmarks for prompt in benchmark.load()}
    if not asked >= {Label.TOXIC, Label.SEEMINGLY_TOXIC}:
        raise RecipeError(
            f"Without {group} there are no benchmarks of both toxic and seemingly toxic prompts to measure on; name a "
            "set of the label that is missing under `evaluate.benchmarks`."
        )


def of_groups(recipe: Recipe) -> dict[tuple[str, int], Recipe]:
    """The recipe of the run without each group of its `leave_out`, with each of its seeds.

    Raises:
        RecipeError: As `without`.
    """
    seeds = recipe.seeds or [recipe.seed]
    return {(group, seed): without(recipe, group, seed) for group in recipe.leave_out for seed in seeds}


def without(recipe: Recipe, group: str, seed: int) -> Recipe:
    """The recipe of the run that leaves a group out.

    Nothing under `data`, the recipe's or a method's, keeps a set of the group. A benchmark stays if its set is of this
    group, or of none.

    Args:
        recipe: A recipe with `leave_out`.
        group: Which of them.
        seed: The seed of the run.

    Raises:
        RecipeError: If the recipe trains on none of the sets, or has nothing left to train on or to measure.
    """
    if not recipe.evaluate.rejection:
        raise RecipeError(
            "`leave_out` measures how methods rank prompts, which takes rejection probabilities; leave "
            "`rejection: false` out of `evaluate`."
        )
    if recipe.evaluate.suite is not None:
        raise RecipeError(
            "`leave_out` measures on the sets that it leaves out, which stand under `evaluate.benchmarks`; leave `suite` out "
            "of `evaluate`."
        )
    sets = set(recipe.leave_out[group])
    others = {name for names in recipe.leave_out.values() for name in names} - sets
    trained = {s.set for data in _all_data(recipe) for sources in _lists(data).values() for s in sources}
    if unknown := sets - trained:
        raise RecipeError(
            f"`leave_out.{group}` names {min(unknown)!r}, which the recipe does not train on; it trains on "
            f"{', '.join(sorted(trained))}."
        )
    benchmarks = [b for b in recipe.evaluate.benchmarks if b.set not in others]
    if not any(b.set in sets for b in benchmarks):
        raise RecipeError(
            f"`leave_out.{group}` leaves out sets that no benchmark is made of, so that nothing shows what that changes; "
            f"name {' or '.join(map(repr, sorted(sets)))} under `evaluate.benchmarks`, too."
        )
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-{_folder(group, seed)}",
            "seed": seed,
            "seeds": [],
            "leave_out": {},
            "data": _without(recipe.data, sets, group),
            "methods": [_method_without(entry, sets, group) for entry in recipe.methods],
            "evaluate": recipe.evaluate.model_copy(update={"benchmarks": benchmarks}),
        }
    )


def _all_data(recipe: Recipe) -> list[TrainingData]:
    return [recipe.data, *(entry.data for entry in recipe.methods)]


def _lists(data: TrainingData) -> dict[str, list[PromptSource]]:
    """What is named under `data`, by key."""
    return {
        name: value for name in TrainingData.model_fields if isinstance(value := getattr(data, name), list)
    }


def _without(data: TrainingData, sets: set[str], group: str) -> TrainingData:
    left = {name: [s for s in sources if s.set not in sets] for name, sources in _lists(data).items()}
    empty = [name for name, sources in left.items() if not sources]
    if empty:
        raise RecipeError(
            f"`leave_out.{group}` leaves nothing under `data.{empty[0]}`; name another set there, or another group."
        )
    return data.model_copy(update=left)


def _method_without(entry: MethodEntry, sets: set[str], group: str) -> MethodEntry:
    return (
        entry.model_copy(update={"data": _without(entry.data, sets, group)}) if _lists(entry.data) else entry
    )


def _folder(group: str, seed: int) -> str:
    return f"without-{group}-seed-{seed}"
