"""A directory for results: made, kept from other processes while one works in it, and free of another recipe's results."""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import BaseFileLock, FileLock, Timeout

from discernment.errors import RunError
from discernment.files import content_hash, write_text

if TYPE_CHECKING:
    from discernment.runs.recipe import Recipe

RECIPE = "recipe.yaml"
RECIPE_HASH = ".recipe.sha256"
SEEDS = "seeds.json"
AGAINST = "seeds-against-"
"""What the names of files begin with that compare a run's methods with another one than the recipe's."""
OUTCOMES = (
    *("manifest.json", "results.json", "proposition.json", "tracked.json"),
    *("report.html", SEEDS, "seeds.html", "left_out.json"),
)


def folder_of(seed: object) -> str:
    """The name of the folder of a seed's run, in the directory of all."""
    return f"seed-{seed}"


def check_one_run(directory: Path) -> None:
    """Make sure that a directory is not that of several seeds or left-out groups, each of which has a run of its own in it.

    Raises:
        RunError: If it is.
    """
    shared = (directory / "stages").resolve()
    runs = sorted(
        path.parent for path in directory.glob("*/stages") if path.is_symlink() and path.resolve() == shared
    )
    if runs and not (directory / "manifest.json").is_file():
        raise RunError(f"{directory} holds several runs; name one of them, such as {runs[0]}.")


@contextmanager
def claim(directory: Path, kind: str, *, whole: bool = True) -> Iterator[None]:
    """Make a directory and keep other processes out of it.

    One that was made for this and got nothing, since a mistake came first, is removed again.

    Args:
        directory: The directory.
        kind: What it is for, such as `run`; names the lock file, and stands in messages.
        whole: Whether all that lies in it is of that kind, and may be written over.

    Raises:
        RunError: If it cannot be made, is in use, or holds files that are none of ours.
    """
    made = not directory.exists()
    if whole and directory.is_dir():
        _check_ours(directory, kind)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The {kind} directory {directory} cannot be made ({error.strerror}); name another."
        ) from error
    lock = _acquired(directory / f"{kind}.lock", f"The {kind} directory {directory}")
    try:
        yield
    finally:
        if made and [path.name for path in directory.iterdir()] == [f"{kind}.lock"]:
            with suppress(OSError):  # where an open file cannot be removed
                shutil.rmtree(directory)
        lock.release()


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other processes away from a directory that a single stage is done into, and from its unfinished one.

    Args:
        directory: The directory, which need not be there; the lock lies beside it, and is removed afterwards.

    Raises:
        RunError: If it is in use.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = _acquired(directory.with_name(f".{directory.name}.lock"), f"The directory {directory}")
    try:
        yield
    finally:
        with suppress(OSError):  # where an open file cannot be removed
            Path(lock.lock_file).unlink()
        lock.release()


def _acquired(file: Path, what: str) -> BaseFileLock:
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(f"{what} is in use by another process; wait for it or name another.") from None
    return lock


def _check_ours(directory: Path, kind: str) -> None:
    """Make sure that nothing of the user's is written over: that a directory is empty or was worked in before."""
    names = {path.name for path in directory.iterdir()}
    if names and not names & {f"{kind}.lock", "stages", "manifest.json", "trials"}:
        raise RunError(
            f"The {kind} directory {directory} holds files of its own ({min(names)}), which would be written over; name a new or "
            "an empty one."
        )


def keep_recipe(directory: Path, recipe: Recipe) -> None:
    """Write the recipe that a directory is run with, and what tells whether somebody has changed it there since."""
    text = recipe.to_yaml()
    write_text(directory / RECIPE, text)
    write_text(directory / RECIPE_HASH, _hash_line(text))


def _hash_line(text: str) -> str:
    return f"{content_hash(text)}\n"


def _is_known(text: str, directory: Path) -> bool:
    """Whether a recipe is the one that a directory, which has a hash, was last run with; a damaged hash is that of none."""
    return (directory / RECIPE_HASH).read_bytes() == _hash_line(text).encode()


def holds_recipe(directory: Path, recipe: Recipe) -> bool:
    """Whether the recipe that a directory was last run with is this one, whatever was written into its file since."""
    written = directory / RECIPE
    if (directory / RECIPE_HASH).is_file():
        return written.is_file() and _is_known(recipe.to_yaml(), directory)
    return written.is_file() and written.read_bytes() == recipe.to_yaml().encode()


def check_recipe(directory: Path) -> None:
    """Make sure that the recipe that lies in a run's directory is still the one that the run was done with.

    Raises:
        RunError: If somebody has changed it since; of a run of an earlier version that is not known.
    """
    written = directory / RECIPE
    if not (written.is_file() and (directory / RECIPE_HASH).is_file()):
        return
    if not _is_known(written.read_bytes().decode("utf-8", errors="replace"), directory):
        raise RunError(f"{written} was changed since the run, which it does not describe any more")


def forget_other_recipe(directory: Path, recipe: Recipe, runs: Container[str] = ()) -> None:
    """Remove the results of another recipe, which must not lie beside this one's stages.

    Args:
        directory: The directory.
        recipe: The recipe that it is for now.
        runs: The folders of this one's runs, where it has several; others that share their stages are removed, but for what
            people made in them, such as labels of an audit.
    """
    if (directory / RECIPE).is_file() and not holds_recipe(directory, recipe):
        _forget_results(directory)
        for link in directory.glob("*/stages"):
            if link.is_symlink() and link.parent.name not in runs:
                _forget_results(link.parent)
                for name in (link.name, "run.lock", RECIPE, RECIPE_HASH):
                    link.with_name(name).unlink(missing_ok=True)
                with suppress(OSError):  # what people made is there
                    link.parent.rmdir()


def _forget_results(directory: Path) -> None:
    for name in OUTCOMES:
        (directory / name).unlink(missing_ok=True)
    for path in directory.glob(f"{AGAINST}*"):
        path.unlink()
    shutil.rmtree(directory / "tables", ignore_errors=True)
