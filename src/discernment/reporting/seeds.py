"""What several seeds found together: in sentences, as a table for the terminal, and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from discernment.evaluation.results import POOLED
from discernment.evaluation.seed_results import (
    Measure,
    Quantity,
    SeedComparison,
    SeedMeasure,
    SeedResults,
    reference_values,
)
from discernment.files import write_text
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.marks import legend_symbol, mark
from discernment.reporting.page import templates
from discernment.reporting.words import benchmark_in_words, label_in_words

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["findings", "render_seeds", "seeds_table", "write_seeds"]

HEADINGS: dict[Quantity, str] = {
    "equal_safety": "Answered at equal safety, %",
    "auroc": "Discernment AUROC",
    "rate": "Rightly handled (toxic refused, others answered), %",
}

MEASURES: dict[Measure, str] = {
    "kernel_similarity": "Kernel similarity with toxic prompts",
    "kl": "KL to the base model, nats a token",
    "perplexity_ratio": "Perplexity over the base model's",
}


def write_seeds(results: SeedResults, out: Path) -> Path:
    """Write the page of a run with several seeds as one HTML file without scripts, and return its path."""
    write_text(out, render_seeds(results))
    return out


def render_seeds(results: SeedResults) -> str:
    """The page as HTML text; the same results give the same text."""
    from discernment.reporting.seed_figures import seed_panels

    looks = {method: mark(number) for number, method in enumerate(results.methods)}
    tables = {quantity: rows for quantity in HEADINGS if (rows := _rows(results, quantity))}
    drawn: Quantity = next(iter(tables), "equal_safety")
    context: dict[str, Any] = {
        "results": results,
        "findings": findings(results),
        "drawn": drawn,
        "panels": seed_panels(results, _headline(results, drawn)),
        "tables": tables,
        "headings": HEADINGS,
        "symbol": lambda method: legend_symbol(looks[method]),
        "mean": fmean,
        "place": place_in_words,
        "against": against_in_words,
        "value": value_in_words,
        "difference": difference_in_words,
        "measure": measure_in_words,
        "interval": interval_in_words,
    }
    return templates().get_template("seeds.html.j2").render(context) + "\n"


# ---------------------------------------------------------------------- the answer in sentences


def findings(results: SeedResults) -> list[str]:
    """Of each method, on which harmless prompts it differs from the reference, at equal safety and in its AUROC.

    A difference is claimed only where its interval over seeds and prompts does not hold 0.
    """
    others = [method for method in results.methods if method != results.reference]
    if not others:
        return [f"There is no other method to compare {results.reference} with."]
    return [f"{_at_equal_safety(results, method)} {_in_auroc(results, method)}" for method in others]


def _at_equal_safety(results: SeedResults, method: str) -> str:
    reference = results.reference
    rows = [row for row in _headline(results, "equal_safety") if row.method == method]
    if not rows:
        return (
            f"{method} and {reference} cannot be compared at equal safety: that needs rejection probabilities, and a "
            "reference that with every seed refuses some of the toxic prompts but not all."
        )
    more, fewer = f"more than {reference} of", f"fewer than {reference} of"
    claims = _claims(
        rows, more, fewer, f"neither clearly more nor clearly fewer than {reference} of", " points"
    )
    return (
        f"With {len(results.seeds)} seeds, and where both refuse the same share of toxic prompts, "
        f"{method} answers {claims}."
    )


def _in_auroc(results: SeedResults, method: str) -> str:
    rows = [row for row in _headline(results, "auroc") if row.method == method]
    if not rows:
        return "Their discernment AUROCs cannot be compared."
    return f"Its discernment AUROC is {_claims(rows, 'higher on', 'lower on', 'not clearly different on')}."


def _claims(rows: Sequence[SeedComparison], more: str, less: str, neither: str, unit: str = "") -> str:
    kinds = {
        more: [row for row in rows if row.low > 0],
        less: [row for row in rows if row.high < 0],
        neither: [row for row in rows if row.low <= 0 <= row.high],
    }
    return "; ".join(
        f"{words} {_listed([_with_interval(row, unit) for row in of_kind])}"
        for words, of_kind in kinds.items()
        if of_kind
    )


def _with_interval(row: SeedComparison, unit: str) -> str:
    return (
        f"the {label_in_words[row.label]} prompts of {benchmark_in_words(row.benchmark)} "
        f"({difference_in_words(row, row.difference)}{unit}, "
        f"95 % interval {interval_in_words(row, row.low, row.high)})"
    )


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


# ---------------------------------------------------------------------- which rows, and how numbers are written


def _rows(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    """The comparisons of a quantity, the methods of one place side by side."""
    rows = [row for row in results.comparisons if row.quantity == quantity]
    places = list(dict.fromkeys((row.label, row.benchmark, row.toxic) for row in rows))
    return sorted(rows, key=lambda row: places.index((row.label, row.benchmark, row.toxic)))


def _headline(results: SeedResults, quantity: Quantity) -> list[SeedComparison]:
    """The harmless prompts of each benchmark against all toxic ones."""
    rows = [row for row in _rows(results, quantity) if row.label is not Label.TOXIC]
    toxic = {row.toxic for row in rows}
    widest = POOLED if POOLED in toxic else next(iter(toxic), None)
    return [row for row in rows if row.benchmark != POOLED and row.toxic == widest]


def place_in_words(row: SeedComparison) -> str:
    """The prompts that count."""
    return f"{benchmark_in_words(row.benchmark)}, {label_in_words[row.label]}"


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
    return MEASURES[row.measure] + ("" if row.label is None else f", {label_in_words[row.label]}")


# ---------------------------------------------------------------------- the terminal


def seeds_table(results: SeedResults) -> Table:
    """The comparisons for the terminal: methods across, one row a benchmark.

    Under each mean stand the difference to the reference, its interval over seeds and prompts, and the one over seeds
    alone, which is all that kernel similarity and ability have. A difference is bold where the widest interval does not
    hold 0.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"Means over the seeds {', '.join(map(str, results.seeds))}",
        caption=Text(
            f"Under a mean: difference to {text.visible(results.reference)}; its 95 % interval over seeds and prompts; "
            "over seeds alone. Kernel and ability have the last one only. Bold: the widest interval does not hold 0."
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    others = [method for method in results.methods if method != results.reference]
    for method in [results.reference, *others]:
        table.add_column(Text(text.visible(method)), justify="right", overflow="fold")
    for quantity, heading in HEADINGS.items():
        rows = _rows(results, quantity) if quantity == "rate" else _headline(results, quantity)
        places: dict[str, dict[str, SeedComparison]] = {}
        for row in rows:
            places.setdefault(place_in_words(row), {})[row.method] = row
        if places:
            table.add_section()
            table.add_row(Text(heading, style="bold"))
        for place, of_method in places.items():
            row = next(iter(of_method.values()))
            common = reference_values(list(of_method.values()))
            reference = Text(text.MISSING if common is None else value_in_words(row, fmean(common)))
            cells = [_cell(of_method.get(method)) for method in others]
            table.add_row(Text(text.visible(place)), reference, *cells)
    if results.measures:
        table.add_section()
        table.add_row(Text("Kernel similarity and ability", style="bold"))
    for measured in _by_measure(results):
        found = {row.method: row for row in measured}
        table.add_row(
            Text(measure_in_words(measured[0])),
            *(_measure_cell(found.get(method)) for method in [results.reference, *others]),
        )
    return table


def _by_measure(results: SeedResults) -> list[list[SeedMeasure]]:
    """The rows of each measure and label together."""
    return [list(rows) for _, rows in groupby(results.measures, key=lambda row: (row.measure, row.label))]


def _measure_cell(row: SeedMeasure | None) -> Text:
    from rich.text import Text

    if row is None:
        return Text(text.MISSING)
    cell = Text(text.decimal(row.mean))
    if row.difference is not None and row.low is not None and row.high is not None:
        differs = row.low > 0 or row.high < 0
        cell.append(f"\n{text.decimal_difference(row.difference)}", style="bold" if differs else "")
        cell.append(f"\n{text.interval(row.low, row.high, 'decimal_difference')}", style="dim")
    return cell


def _cell(row: SeedComparison | None) -> Text:
    from rich.text import Text

    if row is None:
        return Text(text.MISSING)
    cell = Text(value_in_words(row, fmean(row.values)))
    differs = row.low > 0 or row.high < 0
    cell.append(f"\n{difference_in_words(row, row.difference)}", style="bold" if differs else "")
    cell.append(f"\n{interval_in_words(row, row.low, row.high)}", style="dim")
    cell.append(f"\n{interval_in_words(row, row.seeds_low, row.seeds_high)}", style="dim")
    return cell
