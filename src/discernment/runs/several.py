"""Several runs in one directory, which share their stages."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from discernment.files import write_text
from discernment.runs.directory import claim, forget_other_recipe
from discernment.runs.fleet.engine import Engine
from discernment.runs.manifest import check_version
from discernment.runs.parallel import do_side_by_side, goes_elsewhere
from discernment.runs.preparation import prepare
from discernment.runs.recipe import Recipe
from discernment.runs.run import RunSummary, run_prepared
from discernment.runs.stages import Quiet, Reporter, share_stages


def run_several(
    whole: Recipe,
    recipes: Mapping[str, Recipe],
    directory: Path,
    reporter: Reporter | None,
    *,
    verify: bool,
    jobs: int,
    engine: Engine | None = None,
) -> dict[str, RunSummary]:
    """Run what comes of a recipe, each in a folder of its own; all is read and checked before anything is done.

    The caller has claimed the directory, which gets `recipe.yaml`, `stages` and the folders.

    Args:
        whole: The recipe that the others are made of.
        recipes: By the name of its folder, each of a single seed.
        directory: The directory for all.
        reporter: Hears what is going on.
        verify: As in `run_recipe`.
        jobs: How many methods of any run are worked on side by side, each in a process of its own.
        engine: Starts these processes, as in `run_recipe`.

    Raises:
        DiscernmentError: As `run_recipe`.
    """
    folders = {directory / name: recipe for name, recipe in recipes.items()}
    for run in directory.iterdir():
        check_version(run)
    prepared = {folder: prepare(recipe) for folder, recipe in folders.items()}
    forget_other_recipe(directory, whole, recipes)
    write_text(directory / "recipe.yaml", whole.to_yaml())
    for folder in folders:
        share_stages(folder, directory / "stages")
    reporter, ran = reporter or Quiet(), 0
    runs: dict[str, RunSummary] = {}
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(claim(folder, "run"))
        if goes_elsewhere(jobs, engine):
            ran = do_side_by_side(folders, jobs, reporter, verify=verify, engine=engine)
        else:
            reporter.plan([name for found in prepared.values() for name in found.stages])
        for folder, recipe in folders.items():
            runs[folder.name] = run_prepared(
                recipe, prepared[folder], folder, reporter, verify=verify, ran=ran
            )
            ran = 0
    return runs
