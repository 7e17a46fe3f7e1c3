"""Several runs in one directory, which share their stages, and what they say together."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from discernment.files import write_json
from discernment.frozen import Frozen
from discernment.runs.directory import claim, forget_other_recipe, keep_recipe
from discernment.runs.fleet.engine import Engine
from discernment.runs.manifest import check_version
from discernment.runs.parallel import do_side_by_side, goes_elsewhere
from discernment.runs.preparation import prepare
from discernment.runs.recipe import Recipe
from discernment.runs.run import RunSummary, run_prepared
from discernment.runs.stages import Quiet, Reporter, share_stages

Key = TypeVar("Key")
Found = TypeVar("Found", bound=Frozen)


class Several(NamedTuple, Generic[Key, Found]):
    """What several runs left.

    Attributes:
        directory: The directory of all.
        results: What they say together.
        runs: Each run, by what it differs in from the others.
    """

    directory: Path
    results: Found
    runs: dict[Key, RunSummary]


def run_several(
    whole: Recipe,
    recipes: Mapping[Key, Recipe],
    folder: Callable[[Key], str],
    directory: Path,
    file: str,
    together: Callable[[dict[Key, RunSummary]], Found],
    reporter: Reporter | None,
    *,
    verify: bool,
    jobs: int,
    engine: Engine | None = None,
) -> Several[Key, Found]:
    """Run what comes of a recipe, each in a folder of its own; all is read and checked before anything is done.

    The directory gets `recipe.yaml`, `stages`, the folders, and what the runs say together. An interrupted call goes on
    where it was.

    Args:
        whole: The recipe that the others are made of.
        recipes: Each of a single seed, by what it differs in from the others.
        folder: The name of each one's folder.
        directory: The directory for all.
        file: Gets what they say together.
        together: Finds that out.
        reporter: Hears what is going on.
        verify: As in `run_recipe`.
        jobs: How many methods of any run are worked on side by side, each in a process of its own.
        engine: Starts these processes, as in `run_recipe`.

    Raises:
        DiscernmentError: As `run_recipe`.
    """
    named = {folder(key): recipe for key, recipe in recipes.items()}
    with claim(directory, "run"):
        done = _run_all(whole, named, directory, reporter or Quiet(), verify=verify, jobs=jobs, engine=engine)
        runs = {key: done[folder(key)] for key in recipes}
        results = together(runs)
        write_json(directory / file, results.model_dump(mode="json"))
    return Several(directory, results, runs)


def _run_all(
    whole: Recipe,
    recipes: Mapping[str, Recipe],
    directory: Path,
    reporter: Reporter,
    *,
    verify: bool,
    jobs: int,
    engine: Engine | None,
) -> dict[str, RunSummary]:
    """The run of each folder."""
    folders = {directory / name: recipe for name, recipe in recipes.items()}
    for run in (directory, *directory.iterdir()):
        check_version(run)
    prepared = {folder: prepare(recipe) for folder, recipe in folders.items()}
    forget_other_recipe(directory, whole, recipes)
    keep_recipe(directory, whole)
    for folder in folders:
        share_stages(folder, directory / "stages")
    ran = 0
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
