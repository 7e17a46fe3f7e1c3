"""`discern compare`: any number of evaluations and runs, on the prompts that all of them have."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from discernment.cli.console import notice, show_results
from discernment.cli.options import AsJson, Redact, check_not_a_run, out_option
from discernment.errors import DataError, RecipeError
from discernment.files import content_hash, read_json, write_json

if TYPE_CHECKING:
    from discernment.evaluation.sample import Sample
    from discernment.prompts import Asked, Label

    Place = tuple[str, Label, Asked, int]


def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Directories that `evaluate` or `run` left; or NAME=DIR.")
    ],
    reference: Annotated[str | None, typer.Option(help="The name that the others are compared with.")] = None,
    out: Annotated[
        Path | None, out_option("A .json file for the results, or a directory for page, tables and results.")
    ] = None,
    redact: Redact = False,
    as_json: AsJson = False,
) -> None:
    """Compare evaluations of the same prompts: rates, paired tests, equal safety."""
    from discernment.evaluation.results import summarize
    from discernment.reporting.pages.comparison import write_comparison

    if out is not None:
        check_not_a_run(out)
    samples = _shared(_read(evaluations))
    if reference is not None and reference not in samples:
        raise RecipeError(f"There is no evaluation called {reference!r}; there are {', '.join(samples)}.")
    first = "stl" if "stl" in samples else next(iter(samples))
    results = summarize(samples, base_model=", ".join(samples), reference=reference or first)
    show_results(results, as_json=as_json)
    if out is not None and out.suffix == ".json":
        write_json(out, results.model_dump(mode="json"))
        notice(f"Results: {out}")
    elif out is not None:
        page = write_comparison(results, samples, out, redact=redact)
        notice(f"Page: {page}; numbers and verdicts: {out}")


def _read(evaluations: Sequence[Path]) -> dict[str, list[Sample]]:
    """The samples of all evaluations by name; `RUN/METHOD` and `NAME=` in front are understood."""
    from discernment.evaluation.sample import read_samples
    from discernment.runs.evaluations import find_evaluations
    from discernment.runs.mending import what_is_wrong

    samples: dict[str, list[Sample]] = {}
    how: set[str] = set()
    for argument in evaluations:
        for name, path, *_ in find_evaluations(argument):
            if name in samples:
                raise RecipeError(
                    f"Two evaluations are called {name!r}; give one a name of its own: NAME={path}."
                )
            try:
                samples[name] = read_samples(path)
                how.add(_how_evaluated(path))
            except DataError as error:
                raise DataError(f"{what_is_wrong(error)}; {_how_to_mend(path.parent)}.") from error
    if len(how) > 1:
        raise DataError(
            "The evaluations were made in different ways (token cap, openings or judge), so their numbers cannot be "
            "compared; evaluate the models again with the same options."
        )
    return samples


def _shared(samples: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """The samples on prompts that all have, by their texts: ids may be row numbers. Those of the first are taken."""
    named = _benchmarks_of_the_first(samples)
    places = {name: _places(found) for name, found in named.items()}
    first, *others = places.values()
    shared = [place for place in first if all(place in found for found in others)]
    if not shared:
        raise DataError("The evaluations have no prompt in common; evaluate all models on the same sets.")
    kept = {
        name: [
            found[place].model_copy(
                update={key: getattr(first[place], key) for key in ("prompt_id", "partner", "frame")}
            )
            for place in shared
        ]
        for name, found in places.items()
    }
    left_out = {name: len(samples[name]) - len(found) for name, found in kept.items()}
    if any(left_out.values()):
        counts = ", ".join(f"{n} of {name}" for name, n in left_out.items() if n)
        notice(f"Left out, because not all have them: {counts}.", "yellow")
    return kept


def _benchmarks_of_the_first(samples: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """The samples, with benchmarks under the names that the first evaluation has for the same prompts.

    A recipe gives names to its benchmarks, and `evaluate` names them by their sets.
    """
    (owner, first), *others = samples.items()
    home = {(s.label, s.asked): s.benchmark for s in first}
    known = set(home.values())
    found = {owner: first}
    for name, own in others:
        where: dict[str, Counter[str]] = defaultdict(Counter)
        for sample in own:
            where[sample.benchmark][home.get((sample.label, sample.asked), sample.benchmark)] += 1
        called = {b: b if b in known else places.most_common(1)[0][0] for b, places in where.items()}
        found[name] = [s.model_copy(update={"benchmark": called[s.benchmark]}) for s in own]
    return found


def _places(samples: list[Sample]) -> dict[Place, Sample]:
    """Each sample by what was asked; the second of two that ask the same stands beside the second of another method."""
    seen: Counter[tuple[str, Label, Asked]] = Counter()
    found: dict[Place, Sample] = {}
    for sample in samples:
        what = (sample.benchmark, sample.label, sample.asked)
        seen[what] += 1
        found[*what, seen[what]] = sample
    return found


def _how_evaluated(samples: Path) -> str:
    """What must be the same for two evaluations to be compared; the batch size need not."""
    record = samples.with_name("stage.json")
    known = read_json(record) if record.is_file() else {}
    inputs = known.get("inputs", {}) if isinstance(known, dict) else None
    if not isinstance(inputs, dict) or not isinstance(inputs.get("options", {}), dict):
        raise DataError(f"{record} is no record of a stage.")
    options = {k: v for k, v in inputs.get("options", {}).items() if k != "batch_size"}
    return content_hash([options, inputs.get("judge")])


def _how_to_mend(stage: Path) -> str:
    from discernment.runs.mending import how_to_mend

    if stage.parent.name == "stages":
        return how_to_mend(stage.parent.parent)
    return "remove the folder, and evaluate again"
