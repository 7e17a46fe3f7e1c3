"""Running a recipe with several seeds: a run for each, and what they say together."""

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from discernment.errors import RecipeError
from discernment.evaluation.over_seeds import SeedResults, summarize_measures, summarize_seeds
from discernment.files import write_json, write_text
from discernment.runs.directory import claim, forget_other_recipe
from discernment.runs.manifest import check_version
from discernment.runs.parallel import do_side_by_side
from discernment.runs.preparation import prepare
from discernment.runs.recipe import Recipe
from discernment.runs.run import RunSummary, run_prepared
from discernment.runs.stages import Quiet, Reporter, share_stages


class SeedsSummary(NamedTuple):
    """What a run with several seeds left.

    Attributes:
        directory: Its directory.
        results: The numbers, as in `seeds.json`.
        runs: The run of each seed.
    """

    directory: Path
    results: SeedResults
    runs: dict[int, RunSummary]


def run_seeds(
    recipe: Recipe,
    directory: Path,
    reporter: Reporter | None = None,
    *,
    verify: bool = False,
    jobs: int = 1,
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

    Raises:
        DiscernmentError: If the recipe has no `seeds`, or as `run_recipe`.
    """
    if not recipe.seeds:
        raise RecipeError("The recipe has no `seeds`; run it with `run_recipe`, as `discern run` does.")
    with claim(directory, "run"):
        for run in directory.glob("seed-*"):
            check_version(run)
        return _run_seeds(recipe, directory, reporter or Quiet(), verify=verify, jobs=jobs)


def _run_seeds(
    recipe: Recipe, directory: Path, reporter: Reporter, *, verify: bool, jobs: int
) -> SeedsSummary:
    recipes = {seed: _with_seed(recipe, seed) for seed in recipe.seeds}
    prepared = {seed: prepare(of_seed) for seed, of_seed in recipes.items()}
    forget_other_recipe(directory, recipe)
    write_text(directory / "recipe.yaml", recipe.to_yaml())
    folders = {seed: directory / f"seed-{seed}" for seed in recipes}
    for run in folders.values():
        share_stages(run, directory / "stages")
    ran, runs = 0, {}
    with ExitStack() as held:
        for run in folders.values():
            held.enter_context(claim(run, "run"))
        if jobs > 1:
            of_run = {folders[seed]: of_seed for seed, of_seed in recipes.items()}
            ran = do_side_by_side(of_run, jobs, reporter, verify=verify)
        else:
            reporter.plan([name for found in prepared.values() for name in found.stages])
        for seed, of_seed in recipes.items():
            runs[seed] = run_prepared(
                of_seed, prepared[seed], folders[seed], reporter, verify=verify, ran=ran
            )
            ran = 0
    results = summarize_seeds(
        {seed: run.samples for seed, run in runs.items()},
        base_model=recipe.model.model,
        reference=recipe.reference,
        safety_levels=recipe.evaluate.safety_levels,
    )
    measures = summarize_measures({seed: run.results for seed, run in runs.items()}, recipe.reference)
    results = results.model_copy(update={"measures": measures})
    write_json(directory / "seeds.json", results.model_dump(mode="json"))
    return SeedsSummary(directory, results, runs)


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of one seed's run."""
    return recipe.model_copy(update={"name": f"{recipe.name}-{seed}", "seed": seed, "seeds": []})
