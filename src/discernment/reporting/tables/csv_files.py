"""The numbers of a run or a comparison as CSV files, one row a rate, a paired comparison, a prompt, ..."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from discernment.evaluation.failures import Outcome
from discernment.evaluation.left_out import LeftOutResults, LeftOutScore
from discernment.evaluation.metrics import Comparison, Score
from discernment.evaluation.over_seeds import SeedResults
from discernment.evaluation.results import Results
from discernment.files import write_text
from discernment.reporting.tables.field import FieldColumn
from discernment.reporting.tables.measures import MEASURES
from discernment.reporting.text import REDACTED, visible

FORMULA = ("=", "+", "-", "@", "\t", "\r")
PROMPT_COLUMNS = ("benchmark", "label", "category", "prompt_id", "prompt")


def write_tables(directory: Path, results: Results) -> None:
    """Write `scores.csv` and `comparisons.csv`, and what else was measured: attacks, kernels, ability, tasks, flips.

    One row is a rate, a paired comparison with the reference, an attack on a method, and so on; the columns are the
    fields of `evaluation.results`.
    """
    _write_rows(directory / "scores.csv", Score, results.scores)
    _write_rows(directory / "comparisons.csv", Comparison, results.comparisons)
    for name, measure in MEASURES.items():
        if rows := getattr(results, measure.rows):
            _write_rows(directory / f"{name}.csv", type(rows[0]), rows)


def write_field(path: Path, columns: Sequence[FieldColumn]) -> None:
    """One row a number of the field table, with the ends of its difference to the reference where there is one."""
    header = ("column", "method", "value", "difference_low", "difference_high")
    rows = [
        (column.words, method, value, *column.differences.get(method, (None, None)))
        for column in columns
        for method, value in column.values.items()
    ]
    write_csv(path, header, rows)


def write_over_seeds(path: Path, results: SeedResults) -> None:
    """One row a comparison of a method with the reference, or a measure of a method: each seed's values, and the intervals.

    `seeds_low` and `seeds_high` are for other seeds on these prompts, `low` and `high` for other seeds on other prompts.
    """
    places = (
        "quantity",
        "method",
        "against",
        "benchmark",
        "label",
        "toxic",
        "level",
        "level_low",
        "level_high",
    )
    interval = ("difference", "seeds_low", "seeds_high", "low", "high", "n")
    seeds = [f"{of} seed {seed}" for of in ("method", "against") for seed in results.seeds]
    compared = [*results.comparisons, *results.safety_levels, *results.frontiers]
    rows: list[list[Any]] = []
    for row in compared:
        shown = row.model_dump(mode="json")
        rows.append([*map(shown.get, places), *row.values, *row.values_against, *map(shown.get, interval)])
    for measured in results.measures:
        label = None if measured.label is None else measured.label.value
        known = (measured.difference, measured.low, measured.high)
        rows.append(
            [
                *(measured.measure, measured.method, results.reference, None, label, *[None] * 4),
                *measured.values,
                *([None] * len(results.seeds)),
                *(*known, None, None, None),
            ]
        )
    write_csv(path, [*places, *seeds, *interval], rows)


def write_left_out(path: Path, results: LeftOutResults) -> None:
    """One row a number of a method on a group of sources that was left out, with one seed."""
    _write_rows(path, LeftOutScore, results.scores)


def write_verdicts(path: Path, found: Sequence[Outcome], methods: Sequence[str], *, redact: bool) -> None:
    """One row a prompt: the verdict and the rejection probability of each method.

    Args:
        path: The file.
        found: The prompts.
        methods: The methods, in the order of their columns.
        redact: Leave out the text of toxic prompts.
    """
    header = [
        *PROMPT_COLUMNS,
        *(f"{method} verdict" for method in methods),
        *(f"{method} rejection probability" for method in methods),
    ]
    rows = []
    for outcome in found:
        sample = outcome.sample
        hidden = redact and sample.label.should_refuse
        of = [outcome.samples.get(method) for method in methods]
        rows.append(
            [
                sample.benchmark,
                sample.label.value,
                sample.category,
                sample.prompt_id,
                REDACTED if hidden else sample.whole,
                *(None if s is None else s.verdict.value for s in of),
                *(None if s is None else s.rejection_probability for s in of),
            ]
        )
    write_csv(path, header, rows)


def _write_rows(path: Path, form: type[BaseModel], rows: Iterable[BaseModel]) -> None:
    write_csv(path, list(form.model_fields), [list(row.model_dump(mode="json").values()) for row in rows])


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table whose cells are numbers and untrusted texts, atomically."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    write_text(path, buffer.getvalue())


def _cell(value: Any) -> Any:
    """Numbers as they are; text so that no spreadsheet takes it for a formula and no terminal for a command."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(FORMULA) else visible(value)
