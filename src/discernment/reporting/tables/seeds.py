"""What several seeds found together, number by number: which rows stand where, in which form, and in the terminal."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from discernment.evaluation.groups import POOLED
from discernment.evaluation.over_seeds import (
    Quantity,
    SeedComparison,
    SeedFrontier,
    SeedMeasure,
    SeedResults,
    reference_values,
)
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.naming import benchmark_in_words, label_in_words
from discernment.reporting.tables.measures import MEASURES, level_in_words
from discernment.reporting.tables.terminal import Line, Stack, table_of

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS: dict[Quantity, str] = {
    "equal_safety": "Answered at equal safety, %",
    "auroc": "Discernment AUROC",
    "rate": "Rightly handled (toxic refused, others answered), %",
    "strict_compliance": "Strict compliance, %",
    "safety_level": "Answered at fixed levels of safety, %",
    "frontier": "Answered along the frontiers, %",
}


def rows_of(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    """The comparisons of a quantity, the methods of one place side by side."""
    everything = (*results.comparisons, *results.safety_levels, *results.frontiers)
    rows = [row for row in everything if row.quantity == quantity]
    places = list(dict.fromkeys(map(_place, rows)))
    return sorted(rows, key=lambda row: places.index(_place(row)))


def _place(row: SeedComparison) -> tuple[Label, str, str | None, float | None]:
    return row.label, row.benchmark, row.toxic, row.level


def headline(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    """The harmless prompts of each benchmark against all toxic ones."""
    return [row for row in _harmless(results, quantity) if row.benchmark != POOLED]


def pooled(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    """The harmless prompts of all benchmarks against all toxic ones; none where there is one benchmark."""
    return [row for row in _harmless(results, quantity) if row.benchmark == POOLED]


def _harmless(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    return [row for row in against_all(results, quantity) if row.label is not Label.TOXIC]


def against_all(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    """The comparisons of a quantity that are set against all toxic prompts, or against none."""
    rows = rows_of(results, quantity)
    toxic = {row.toxic for row in rows}
    widest = POOLED if POOLED in toxic else next(iter(toxic), None)
    return [row for row in rows if row.toxic == widest]


def place_in_words(row: SeedComparison) -> str:
    """The prompts that count, and the level of safety where it is fixed."""
    where = f"{benchmark_in_words(row.benchmark)}, {label_in_words[row.label]}"
    if isinstance(row, SeedFrontier):
        return f"{where}, {text.percent(row.level_low)} to {text.percent(row.level_high)} % refused"
    return where if row.level is None else f"{where}, {level_in_words(row)}"


def against_in_words(row: SeedComparison) -> str:
    """The toxic prompts that they are set against, or nothing."""
    return "" if row.toxic is None else f"against toxic prompts of {benchmark_in_words(row.toxic)}"


def value_in_words(row: SeedComparison, value: float) -> str:
    """A value of a row, or a mean of some."""
    return text.decimal(value) if row.quantity == "auroc" else text.percent(value)


def difference_in_words(row: SeedComparison, value: float) -> str:
    """A difference with its sign."""
    return text.decimal_difference(value) if row.quantity == "auroc" else text.points(value)


def interval_in_words(row: SeedComparison, low: float, high: float) -> str:
    """An interval of a difference."""
    return text.interval(low, high, "decimal_difference" if row.quantity == "auroc" else "points")


def measure_in_words(row: SeedMeasure) -> str:
    """What was measured, and of which prompts."""
    words = {name: words for measure in MEASURES.values() for name, words in measure.over_seeds.items()}
    return words[row.measure] + ("" if row.label is None else f", {label_in_words[row.label]}")


def seeds_table(results: SeedResults) -> Table:
    """The comparisons for the terminal: methods across, one row a benchmark.

    Under each mean stand the difference to the reference, its interval over seeds and prompts, and the one over seeds
    alone, which is all that kernel similarity, ability and attacks have. A difference is bold where the first interval does not
    hold 0.
    """
    from rich.text import Text

    lines: dict[tuple[str, str], dict[str, Stack]] = {}
    for quantity, heading in HEADINGS.items():
        if quantity == "safety_level":  # strict compliance is the mean of them, and of all between
            continue
        rows = rows_of(results, quantity) if quantity in ("rate", "frontier") else headline(results, quantity)
        places: dict[str, list[SeedComparison]] = {}
        for row in rows:
            places.setdefault(place_in_words(row), []).append(row)
        for place, here in places.items():
            common = reference_values(here)
            mean = text.MISSING if common is None else value_in_words(here[0], fmean(common))
            lines[heading, place] = {row.method: _stack(row) for row in here} | {
                results.reference: [(mean, "")]
            }
    for measured in results.measures:
        line = lines.setdefault(("Kernel similarity, ability and attacks", measure_in_words(measured)), {})
        line[measured.method] = _measure_stack(measured)
    caption = Text(
        f"Under a mean: difference to {text.visible(results.reference)}; its 95 % interval over seeds and prompts; "
        "over seeds alone. Kernel, ability and attacks have the last one only. Bold: the first interval does not hold 0."
    )
    return table_of(
        f"Means over the seeds {', '.join(map(str, results.seeds))}",
        caption,
        "",
        list(dict.fromkeys([results.reference, *results.methods])),
        [Line(group, where, numbers) for (group, where), numbers in lines.items()],
    )


def _stack(row: SeedComparison) -> Stack:
    return [
        (value_in_words(row, fmean(row.values)), ""),
        (difference_in_words(row, row.difference), "bold" if row.low > 0 or row.high < 0 else ""),
        (interval_in_words(row, row.low, row.high), "dim"),
        (interval_in_words(row, row.seeds_low, row.seeds_high), "dim"),
    ]


def _measure_stack(row: SeedMeasure) -> Stack:
    mean = (text.decimal(row.mean), "")
    if row.difference is None:
        return [mean]
    difference = text.decimal_difference(row.difference)
    if row.low is None or row.high is None:
        return [mean, (difference, "")]
    interval = text.interval(row.low, row.high, "decimal_difference")
    return [mean, (difference, "bold" if row.low > 0 or row.high < 0 else ""), (interval, "dim")]
