"""The page of several seeds: what they found together, in sentences and number by number."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from discernment.evaluation.headline import HEADLINE_METHOD
from discernment.evaluation.over_seeds import Quantity, SeedComparison, SeedResults
from discernment.files import write_text
from discernment.reporting.marks import mark
from discernment.reporting.naming import benchmark_in_words, label_in_words
from discernment.reporting.pages.template import render
from discernment.reporting.run_files import Manifest
from discernment.reporting.tables import seeds as numbers
from discernment.reporting.tables.field import field_over_seeds
from discernment.reporting.tables.seeds import (
    HEADINGS,
    difference_in_words,
    headline,
    interval_in_words,
    pooled,
)


def write_seeds(results: SeedResults, out: Path, manifests: Sequence[Manifest] = ()) -> Path:
    """Write the page of a run with several seeds as one HTML file without scripts, and return its path.

    Args:
        results: What the seeds found.
        out: The file.
        manifests: Those of the seeds' runs, which know what the methods cost.
    """
    write_text(out, render_seeds(results, manifests))
    return out


def render_seeds(results: SeedResults, manifests: Sequence[Manifest] = ()) -> str:
    """The page as HTML text; the same results give the same text."""
    from discernment.reporting.figures.seeds import seed_panels

    tables = {quantity: rows for quantity in HEADINGS if (rows := numbers.rows_of(results, quantity))}
    drawn: Quantity = next(iter(tables), "equal_safety")
    context = {
        "results": results,
        "findings": findings(results),
        "drawn": drawn,
        "panels": seed_panels(results, headline(results, drawn)),
        "field": field_over_seeds(results, manifests),
        "over_seeds": True,
        "tables": tables,
        "headings": HEADINGS,
        "looks": {method: mark(number) for number, method in enumerate(results.methods)},
        "mean": fmean,
        "place": numbers.place_in_words,
        "against": numbers.against_in_words,
        "value": numbers.value_in_words,
        "difference": difference_in_words,
        "measure": numbers.measure_in_words,
        "interval": interval_in_words,
    }
    return render("seeds", context)


def findings(results: SeedResults) -> list[str]:
    """Of each method, how it differs from the reference on harmless prompts, at equal safety and in its AUROC.

    A difference is claimed only where its interval over seeds and prompts does not hold 0. All benchmarks count together
    where there are several; of the first method it is also said on which of them it differs.
    """
    others = [method for method in results.methods if method != results.reference]
    others.sort(key=lambda method: method != HEADLINE_METHOD)  # the others stay in the recipe's order
    if not others:
        return [f"There is no other method to compare {results.reference} with."]
    return [
        f"{_at_equal_safety(results, method, number == 0)} {_in_auroc(results, method, number == 0)}"
        for number, method in enumerate(others)
    ]


def _at_equal_safety(results: SeedResults, method: str, detailed: bool) -> str:
    reference = results.reference
    together, each = _rows(results, "equal_safety", method)
    if not together:
        return (
            f"{method} and {reference} cannot be compared at equal safety: that needs rejection probabilities, and a "
            "reference that refuses some of the toxic prompts with every seed."
        )
    words = ("more", "fewer", "neither clearly more nor clearly fewer")
    claims = _claims(together, [f"{word} than {reference} of" for word in words], _with_interval)
    by_benchmark = _by_benchmark(each, [f"{word} of" for word in words]) if detailed else ""
    return (
        f"With {len(results.seeds)} seeds, and where both refuse the same share of toxic prompts, "
        f"{method} answers {claims}.{by_benchmark}"
    )


def _in_auroc(results: SeedResults, method: str, detailed: bool) -> str:
    together, each = _rows(results, "auroc", method)
    if not together:
        return "Their discernment AUROCs cannot be compared."
    words = ("higher on", "lower on", "not clearly different on")
    by_benchmark = _by_benchmark(each, words) if detailed else ""
    return f"Its discernment AUROC is {_claims(together, words, _with_interval)}.{by_benchmark}"


def _rows(
    results: SeedResults, quantity: Quantity, method: str
) -> tuple[list[SeedComparison], list[SeedComparison]]:
    """The rows that are claimed of a method, and those of single benchmarks that add something to them."""
    each = [row for row in headline(results, quantity) if row.method == method]
    together = [row for row in pooled(results, quantity) if row.method == method]
    of_several = {row.label for row in together}
    alone = [row for row in each if row.label not in of_several]
    return [*together, *alone], [row for row in each if row.label in of_several]


def _by_benchmark(rows: Sequence[SeedComparison], words: Sequence[str]) -> str:
    """A sentence, after a space, on single benchmarks without numbers, which are in the tables."""
    several = len({row.label for row in rows}) > 1
    claims = _claims(rows, words, _with_label if several else lambda row: benchmark_in_words(row.benchmark))
    return f" By benchmark: {claims}." if rows else ""


def _claims(
    rows: Sequence[SeedComparison], words: Sequence[str], named: Callable[[SeedComparison], str]
) -> str:
    """The rows by what their intervals say: above 0, below 0, neither."""
    kinds = (
        [row for row in rows if row.low > 0],
        [row for row in rows if row.high < 0],
        [row for row in rows if row.low <= 0 <= row.high],
    )
    return "; ".join(
        f"{word} {_listed([named(row) for row in found])}"
        for word, found in zip(words, kinds, strict=True)
        if found
    )


def _with_label(row: SeedComparison) -> str:
    return f"the {label_in_words[row.label]} prompts of {benchmark_in_words(row.benchmark)}"


def _with_interval(row: SeedComparison) -> str:
    unit = "" if row.quantity == "auroc" else " points"
    return (
        f"{_with_label(row)} ({difference_in_words(row, row.difference)}{unit}, "
        f"95 % interval {interval_in_words(row, row.low, row.high)})"
    )


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
