"""What several seeds found together as Markdown tables, for a README, a paper's draft or a review."""

from collections.abc import Sequence
from statistics import fmean

from discernment.evaluation.over_seeds import SeedComparison, SeedMeasure, SeedResults
from discernment.reporting import text
from discernment.reporting.tables.seeds import (
    HEADINGS,
    against_all,
    difference_in_words,
    interval_in_words,
    measure_in_words,
    place_in_words,
)


def seeds_markdown(results: SeedResults) -> str:
    """Markdown with a table for each quantity: methods across, one row a benchmark.

    A method's cell is its mean over the seeds, and the lowest and the highest of them; a difference's the mean
    difference to the reference and its 95 % interval, bold where that does not hold 0. Harmless prompts are set against
    all toxic ones; `seeds.csv` has the others, and each seed.
    """
    parts = [
        f"# Over the seeds {', '.join(map(str, results.seeds))}",
        f"Mean (lowest to highest seed); difference to `{_cell(results.reference)}` with its 95 % interval for other "
        "seeds on other prompts, bold where it does not hold 0; of what was measured beside the replies for other seeds alone.",
    ]
    for quantity, heading in HEADINGS.items():
        places: dict[str, list[SeedComparison]] = {}
        for row in against_all(results, quantity):
            places.setdefault(place_in_words(row), []).append(row)
        if places:
            lines = [_line(results, place, here) for place, here in places.items()]
            parts += [f"## {heading}", "\n".join([*_head(results), *lines])]
    measures: dict[str, list[SeedMeasure]] = {}
    for measured in results.measures:
        measures.setdefault(measure_in_words(measured), []).append(measured)
    if measures:
        lines = [_measured(results, what, here) for what, here in measures.items()]
        parts += ["## Kernel similarity, ability and attacks", "\n".join([*_head(results), *lines])]
    return "\n\n".join(parts) + "\n"


def _order(results: SeedResults) -> tuple[list[str], list[str]]:
    """All methods, the reference first, and the others."""
    others = [method for method in results.methods if method != results.reference]
    return [results.reference, *others], others


def _head(results: SeedResults) -> list[str]:
    methods, others = _order(results)
    names = [f"`{_cell(method)}`" for method in methods]
    differences = [f"`{_cell(method)}` {text.MINUS} `{_cell(results.reference)}`" for method in others]
    return [_row(["", *names, *differences]), "|" + "---|" * (1 + len(methods) + len(others))]


def _line(results: SeedResults, place: str, rows: Sequence[SeedComparison]) -> str:
    by_method = {row.method: row for row in rows}
    values = {method: row.values for method, row in by_method.items()}
    # Where a method lacks a number of some prompts, the reference is compared with it on fewer; the most are shown.
    values[results.reference] = max(rows, key=lambda row: row.n).values_against
    form = "{:.2f}" if rows[0].quantity == "auroc" else "{:.0%}"
    methods, others = _order(results)
    differences = [
        _difference(
            difference_in_words(row, row.difference),
            interval_in_words(row, row.low, row.high),
            shown=row.low > 0 or row.high < 0,
        )
        if (row := by_method.get(method)) is not None
        else text.MISSING
        for method in others
    ]
    return _row([_cell(place), *(_mean(values.get(method), form) for method in methods), *differences])


def _measured(results: SeedResults, what: str, rows: Sequence[SeedMeasure]) -> str:
    by_method = {row.method: row for row in rows}
    methods, others = _order(results)
    differences = [
        _difference(
            text.decimal_difference(row.difference),
            text.interval(row.low, row.high, "decimal_difference"),
            shown=row.low is not None and row.high is not None and (row.low > 0 or row.high < 0),
        )
        if (row := by_method.get(method)) is not None and row.difference is not None
        else text.MISSING
        for method in others
    ]
    values = {method: row.values for method, row in by_method.items()}
    return _row([_cell(what), *(_mean(values.get(method), "{:.3f}") for method in methods), *differences])


def _mean(values: Sequence[float] | None, form: str) -> str:
    if values is None:
        return text.MISSING
    mean, low, high = (_rounded(value, form) for value in (fmean(values), min(values), max(values)))
    return f"{mean} ({low} to {high})"


def _rounded(value: float, form: str) -> str:
    shown = form.format(value).rstrip("%")
    return shown.removeprefix("-") if float(shown) == 0 else shown.replace("-", text.MINUS)


def _difference(difference: str, interval: str, *, shown: bool) -> str:
    mean = f"**{difference}**" if shown else difference
    return f"{mean} ({interval})" if interval else mean


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str) -> str:
    """A name that neither ends its cell nor its line."""
    return " ".join(text.visible(name).replace("|", "\\|").replace("`", "'").split())
