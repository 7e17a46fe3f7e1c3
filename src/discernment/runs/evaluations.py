"""Which evaluations a directory on the command line means."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from discernment.errors import DataError
from discernment.runs.directory import SEEDS, check_one_run
from discernment.runs.manifest import FILE, methods_of

SAMPLES = "samples.jsonl"


class Evaluation(NamedTuple):
    """An evaluation that can be read.

    Attributes:
        name: What to call it.
        samples: The file with its samples.
        run: The run that it belongs to; None where it stands alone.
        method: The method of the run that it is of.
    """

    name: str
    samples: Path
    run: Path | None = None
    method: str | None = None


def find_evaluations(argument: Path) -> list[Evaluation]:
    """The evaluations that an argument means: a directory with samples, a run, `RUN/METHOD`; `NAME=` in front is understood.

    Raises:
        DataError: If it means none, or the run's manifest cannot be read.
    """
    # A directory may have an equals sign in its name.
    name, _, rest = ("", "", str(argument)) if argument.is_dir() else str(argument).rpartition("=")
    directory = Path(rest)
    if (directory / SAMPLES).is_file():
        return [Evaluation(name or directory.absolute().name, directory / SAMPLES)]
    if (directory / FILE).is_file():
        return [e._replace(name=f"{name}/{e.name}" if name else e.name) for e in _of_run(directory)]
    run, wanted = directory.parent, directory.name
    if (run / FILE).is_file() and not directory.exists():
        of_run = _of_run(run)
        found = [e._replace(name=name or e.name) for e in of_run if e.method == wanted]
        if not found:
            there = ", ".join(e.name for e in of_run) or "none"
            raise DataError(f"The run {run} has no evaluation of {wanted!r}; it has {there}.")
        return found
    if (directory / SEEDS).is_file():
        raise DataError(
            f"{directory} holds a run for each seed; name one of them, or compare over all seeds with "
            f"`discern report {directory} --reference METHOD`."
        )
    check_one_run(directory)
    raise DataError(f"{directory} holds neither an evaluation nor a run: no {SAMPLES}, no {FILE}.")


def _of_run(directory: Path) -> Sequence[Evaluation]:
    return [
        Evaluation(method, directory / "stages" / stage / SAMPLES, directory, method)
        for method, entry in methods_of(directory).items()
        for stage in entry.get("stages", ())
        if str(stage).startswith("evaluate-")
    ]
