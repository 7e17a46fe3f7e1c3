"""What `discern compare` calls: any number of evaluations and runs on the prompts that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from discernment.cli.console import console
from discernment.errors import DataError, RecipeError
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample, read_samples
from discernment.evaluation.summary import summarize
from discernment.files import content_hash, read_json, write_json
from discernment.reporting.comparison import write_comparison
from discernment.reporting.table import results_table
from discernment.reporting.text import visible

__all__ = ["compare_evaluations"]


def compare_evaluations(
    evaluations: Sequence[Path], reference: str | None, out: Path | None, *, redact: bool = False
) -> Results:
    """Compare what `evaluate` or `run` left, and print the table and the finding.

    Args:
        evaluations: Directories of evaluations or runs, or `RUN/METHOD`; `NAME=` in front gives a name.
        reference: The name that the others are compared with; `stl` where it is there, or the first.
        out: A file that ends in `.json` for the results, or a directory for these, tables and a page.
        redact: Leave out the text of toxic prompts and of the completions to them.

    Raises:
        DataError: If something cannot be read, or the evaluations cannot be compared.
        RecipeError: If two have one name, or none is called `reference`.
    """
    samples = _shared(_read(evaluations))
    if reference is not None and reference not in samples:
        raise RecipeError(f"There is no evaluation called {reference!r}; there are {', '.join(samples)}.")
    first = "stl" if "stl" in samples else next(iter(samples))
    results = summarize(samples, base_model=", ".join(samples), reference=reference or first)
    console.print(results_table(results))
    console.print(Text(visible(results.finding)))
    if out is not None and out.suffix == ".json":
        write_json(out, results.model_dump(mode="json"))
        console.print(Text(visible(f"Results: {out}")))
    elif out is not None:
        page = write_comparison(results, samples, out, redact=redact)
        console.print(Text(visible(f"Page: {page}; numbers and verdicts: {out}")))
    return results


def _read(evaluations: Sequence[Path]) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    how: set[str] = set()
    for argument in evaluations:
        for name, path in _samples_in(argument):
            if name in samples:
                raise RecipeError(
                    f"Two evaluations are called {name!r}; give one a name of its own: NAME={path}."
                )
            samples[name] = read_samples(path)
            how.add(_how_evaluated(path))
    if len(how) > 1:
        raise DataError(
            "The evaluations were made in different ways (token cap, openings or judge), so their numbers cannot be "
            "compared; evaluate the models again with the same options."
        )
    return samples


def _shared(samples: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """The samples on prompts that all have."""
    shared = set.intersection(*({(s.benchmark, s.prompt) for s in found} for found in samples.values()))
    if not shared:
        raise DataError("The evaluations have no prompt in common; evaluate all models on the same sets.")
    kept = {name: [s for s in found if (s.benchmark, s.prompt) in shared] for name, found in samples.items()}
    left_out = {name: len(samples[name]) - len(found) for name, found in kept.items()}
    if any(left_out.values()):
        counts = ", ".join(f"{n} of {name}" for name, n in left_out.items() if n)
        console.print(Text(visible(f"Left out, because not all have them: {counts}."), "yellow"))
    return kept


def _how_evaluated(samples: Path) -> str:
    """What must be the same for two evaluations to be compared; the batch size need not."""
    record = samples.with_name("stage.json")
    inputs = read_json(record).get("inputs", {}) if record.is_file() else {}
    options = {k: v for k, v in inputs.get("options", {}).items() if k != "batch_size"}
    return content_hash([options, inputs.get("judge")])


def _samples_in(argument: Path) -> list[tuple[str, Path]]:
    """The name and the samples of each evaluation that an argument means."""
    # A directory may have an equals sign in its name.
    name, equals, rest = ("", "", str(argument)) if argument.is_dir() else str(argument).rpartition("=")
    directory = Path(rest)
    if (directory / "samples.jsonl").is_file():
        return [(name if equals else directory.name, directory / "samples.jsonl")]
    if (directory / "manifest.json").is_file():
        prefix = f"{name}/" if equals else ""
        return [(prefix + method, path) for method, path in _of_run(directory)]
    if (directory.parent / "manifest.json").is_file() and not directory.exists():
        of_run = _of_run(directory.parent)
        found = [(name if equals else method, path) for method, path in of_run if method == directory.name]
        if not found:
            raise DataError(
                f"The run {directory.parent} has no evaluation of {directory.name!r}; it has "
                f"{', '.join(method for method, _ in of_run) or 'none'}."
            )
        return found
    raise DataError(f"{directory} holds neither an evaluation nor a run: no samples.jsonl, no manifest.json.")


def _of_run(directory: Path) -> list[tuple[str, Path]]:
    methods = read_json(directory / "manifest.json")["methods"]
    return [
        (method, directory / "stages" / stage / "samples.jsonl")
        for method, entry in methods.items()
        for stage in entry["stages"]
        if stage.startswith("evaluate-")
    ]
