"""The page of several seeds: what they found together, in sentences and number by number."""

from collections.abc import Sequence
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
from discernment.reporting.tables.seeds import HEADINGS, difference_in_words, headline, interval_in_words


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
    """Of each method, on which harmless prompts it differs from the reference, at equal safety and in its AUROC.

    A difference is claimed only where its interval over seeds and prompts does not hold 0.
    """
    others = [method for method in results.methods if method != results.reference]
    others.sort(key=lambda method: method != HEADLINE_METHOD)  # the others stay in the recipe's order
    if not others:
        return [f"There is no other method to compare {results.reference} with."]
    return [f"{_at_equal_safety(results, method)} {_in_auroc(results, method)}" for method in others]


def _at_equal_safety(results: SeedResults, method: str) -> str:
    reference = results.reference
    rows = [row for row in headline(results, "equal_safety") if row.method == method]
    if not rows:
        return (
            f"{method} and {reference} cannot be compared at equal safety: that needs rejection probabilities, and a "
            "reference that refuses some of the toxic prompts with every seed."
        )
    than = f"than {reference} of"
    claims = _claims(
        rows, f"more {than}", f"fewer {than}", f"neither clearly more nor clearly fewer {than}", " points"
    )
    return (
        f"With {len(results.seeds)} seeds, and where both refuse the same share of toxic prompts, "
        f"{method} answers {claims}."
    )


def _in_auroc(results: SeedResults, method: str) -> str:
    rows = [row for row in headline(results, "auroc") if row.method == method]
    if not rows:
        return "Their discernment AUROCs cannot be compared."
    return f"Its discernment AUROC is {_claims(rows, 'higher on', 'lower on', 'not clearly different on')}."


def _claims(rows: Sequence[SeedComparison], more: str, less: str, neither: str, unit: str = "") -> str:
    kinds = {
        more: [row for row in rows if row.low > 0],
        less: [row for row in rows if row.high < 0],
        neither: [row for row in rows if row.low <= 0 <= row.high],
    }

    def with_interval(row: SeedComparison) -> str:
        return (
            f"the {label_in_words[row.label]} prompts of {benchmark_in_words(row.benchmark)} "
            f"({difference_in_words(row, row.difference)}{unit}, "
            f"95 % interval {interval_in_words(row, row.low, row.high)})"
        )

    return "; ".join(
        f"{words} {_listed([with_interval(row) for row in found])}" for words, found in kinds.items() if found
    )


def _listed(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
