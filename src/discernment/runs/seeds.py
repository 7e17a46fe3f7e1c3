"""Running a recipe with several seeds: a run for each, and what they say together."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from discernment.errors import RecipeError
from discernment.evaluation.families_over_seeds import frontiers_over_seeds
from discernment.evaluation.measures_over_seeds import summarize_measures
from discernment.evaluation.over_seeds import SeedResults, summarize_seeds
from discernment.evaluation.results import LeftOut, Results
from discernment.evaluation.sample import Sample
from discernment.runs.directory import SEEDS, folder_of
from discernment.runs.fleet.engine import Engine
from discernment.runs.recipe import Recipe
from discernment.runs.several import Several, run_several
from discernment.runs.stages import Reporter

SeedsSummary = Several[int, SeedResults]
"""What a run with several seeds left: the numbers are those of `seeds.json`."""


class SeedRun(Protocol):
    """The run of one seed, just done or read again."""

    @property
    def samples(self) -> Mapping[str, Sequence[Sample]]:
        """What each method made of each prompt."""
        ...

    @property
    def results(self) -> Results:
        """The run's numbers."""
        ...


def run_seeds(
    recipe: Recipe,
    directory: Path,
    reporter: Reporter | None = None,
    *,
    verify: bool = False,
    jobs: int = 1,
    engine: Engine | None = None,
) -> SeedsSummary:
    """Run `recipe` once with each of its `seeds`.

    The directory gets `recipe.yaml`, a run `seed-N` for each seed, the `stages` that they share (the base model is
    evaluated once), and `seeds.json`. An interrupted call goes on where it was.

    Args:
        recipe: A recipe with `seeds`.
        directory: The directory for all runs.
        reporter: Hears what is going on.
        verify: As in `run_recipe`.
        jobs: How many methods of any seeds are worked on side by side, each in a process of its own.
        engine: Starts these processes, as in `run_recipe`.

    Raises:
        DiscernmentError: If the recipe has no `seeds`, or as `run_recipe`.
    """
    if not recipe.seeds:
        raise RecipeError("The recipe has no `seeds`; run it with `run_recipe`, as `discern run` does.")
    return run_several(
        recipe,
        of_seeds(recipe),
        folder_of,
        directory,
        SEEDS,
        partial(together, recipe),
        reporter,
        verify=verify,
        jobs=jobs,
        engine=engine,
    )


def of_seeds(recipe: Recipe) -> dict[int, Recipe]:
    """The recipe of the run of each of its `seeds`."""
    return {seed: with_seed(recipe, seed) for seed in recipe.seeds}


def together(recipe: Recipe, runs: Mapping[int, SeedRun]) -> SeedResults:
    """What the runs of a recipe's seeds say together: every method compared with the recipe's reference."""
    samples = {seed: run.samples for seed, run in runs.items()}
    results = summarize_seeds(
        samples,
        base_model=recipe.model.model,
        reference=recipe.reference,
        safety_levels=recipe.evaluate.safety_levels,
    )
    measures = summarize_measures({seed: run.results for seed, run in runs.items()}, recipe.reference)
    frontiers = frontiers_over_seeds(samples, recipe.families, recipe.reference)
    return results.model_copy(
        update={"frontiers": frontiers, "measures": measures, "left_out": _left_out(runs)}
    )


def _left_out(runs: Mapping[int, SeedRun]) -> list[LeftOut]:
    """What some seeds' runs lack, each once with these seeds."""
    seeds: dict[LeftOut, list[int]] = {}
    for seed, run in runs.items():
        for left_out in run.results.left_out:
            seeds.setdefault(left_out, []).append(seed)
    return [left_out.model_copy(update={"seeds": tuple(found)}) for left_out, found in seeds.items()]


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of one seed's run."""
    return recipe.model_copy(update={"name": f"{recipe.name}-{seed}", "seed": seed, "seeds": []})
