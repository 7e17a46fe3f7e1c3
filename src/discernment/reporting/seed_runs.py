"""A run with several seeds: its page and its tables, made again or with another method to compare with."""

import re
from pathlib import Path

from pydantic import ValidationError

from discernment.errors import RecipeError, RunError
from discernment.evaluation.over_seeds import SeedResults
from discernment.files import read_json, write_json, write_text
from discernment.reporting.pages.seeds import write_seeds
from discernment.reporting.run_files import check_finished, read_manifest, read_run
from discernment.reporting.tables.csv_files import write_field, write_over_seeds
from discernment.reporting.tables.field import field_over_seeds
from discernment.reporting.tables.seeds_markdown import seeds_markdown
from discernment.runs.directory import AGAINST, RECIPE, SEEDS, check_recipe, folder_of
from discernment.runs.mending import how_to_mend
from discernment.runs.recipe import Recipe, read_recipe
from discernment.runs.seeds import together


def report_seeds(directory: Path, out: Path | None = None, *, reference: str | None = None) -> Path:
    """Write the page and the tables of a run with several seeds again.

    Without `reference` the numbers are those of `seeds.json`. With one they are made anew from what each seed's run left,
    and lie beside the others: `seeds-against-REFERENCE.json` and `.html`, `tables/seeds-against-REFERENCE.csv` and `.md`.

    Args:
        directory: The directory of the run.
        out: The page, if it is to lie elsewhere.
        reference: The method that the others are compared with; that of the recipe by default.

    Returns:
        The page.

    Raises:
        RecipeError: If there is no such method.
        RunError: If a file of the run is missing or damaged.
    """
    results = _read(directory / SEEDS)
    if reference is None or reference == results.reference:
        return write_seed_files(results, directory, out)
    if reference not in results.methods:
        raise RecipeError(
            f"There is no method {reference!r} in {directory}; there are {', '.join(results.methods)}."
        )
    runs = {seed: read_run(directory / folder_of(seed)) for seed in results.seeds}
    for seed, run in runs.items():
        check_finished(run)
        if missing := [method for method in results.methods if method not in run.samples]:
            raise RunError(
                f"{directory / folder_of(seed)} has no samples of {missing[0]!r}; {how_to_mend(directory)}."
            )
    _check_recipe(directory)
    anew = together(_against(read_recipe(directory / RECIPE), reference), runs)
    name = AGAINST + re.sub(r"[^\w.-]", "_", reference)
    write_json(directory / f"{name}.json", anew.model_dump(mode="json"))
    return write_seed_files(anew, directory, out, name)


def _check_recipe(directory: Path) -> None:
    try:
        check_recipe(directory)
    except RunError as error:
        raise RunError(f"{error}; {how_to_mend(directory)}.") from error


def _read(path: Path) -> SeedResults:
    broken = RunError(f"{path} is not what a run of this version leaves; give `discern run` again.")
    try:
        results = SeedResults.model_validate(read_json(path))
    except ValidationError as error:
        raise broken from error
    compared = [*results.comparisons, *results.safety_levels, *results.frontiers]
    lists = [row.values for row in compared] + [row.values_against for row in compared]
    lists += [row.values for row in results.measures]
    if any(len(values) != len(results.seeds) for values in lists):
        raise broken
    return results


def write_seed_files(
    results: SeedResults,
    directory: Path,
    page: Path | None = None,
    name: str = "seeds",
) -> Path:
    """Write the page of several seeds, and in `tables/` every number as CSV and what leads as Markdown.

    Args:
        results: What the seeds found.
        directory: The run's, with that of each seed; gets `NAME.html`, `tables/NAME.csv`, `tables/NAME.md` and, of many methods, `tables/field.csv`
            (`field-against-METHOD.csv` where it is not the recipe's reference).
        page: The page, if it is to lie elsewhere.
        name: What the files are called.

    Returns:
        The page.
    """
    tables = directory / "tables"
    read = (read_manifest(directory / folder_of(seed)) for seed in results.seeds)
    manifests = [manifest for manifest in read if manifest is not None]
    write_over_seeds(tables / f"{name}.csv", results)
    write_text(tables / f"{name}.md", seeds_markdown(results))
    if columns := field_over_seeds(results, manifests):
        write_field(tables / f"{name.replace('seeds', 'field', 1)}.csv", columns)
    return write_seeds(results, page or directory / f"{name}.html", manifests)


def _against(recipe: Recipe, reference: str) -> Recipe:
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"reference": reference})})
