"""The page of a comparison, with the prompts that still fail, and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from discernment.evaluation.failures import category_failures, changes, outcomes
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample
from discernment.files import write_json, write_text
from discernment.reporting.marks import legend_symbol, mark
from discernment.reporting.page import templates
from discernment.reporting.table import columns, tallies
from discernment.reporting.tables_csv import write_tables, write_verdicts
from discernment.reporting.words import benchmark_in_words, label_in_words

__all__ = ["render_comparison", "write_comparison"]

COMPLETION_LIMIT = 800
SHOWN_PER_CATEGORY = 10
SHOWN_PER_CHANGE = 24


def write_comparison(
    results: Results, samples: Mapping[str, Sequence[Sample]], out: Path, *, redact: bool = False
) -> Path:
    """Write `results.json`, `scores.csv`, `comparisons.csv`, `verdicts.csv` and `comparison.html` into `out`.

    Args:
        results: The numbers.
        samples: The samples of each method that they were computed from.
        out: A directory.
        redact: Leave out the text of toxic prompts and of the completions to them.

    Returns:
        The path of the page.
    """
    write_json(out / "results.json", results.model_dump(mode="json"))
    write_tables(out, results)
    write_verdicts(out / "verdicts.csv", outcomes(samples), results.methods, redact=redact)
    page = out / "comparison.html"
    write_text(page, render_comparison(results, samples, redact=redact))
    return page


def render_comparison(
    results: Results, samples: Mapping[str, Sequence[Sample]], *, redact: bool = False
) -> str:
    """The page as HTML text, without scripts; the same samples give the same text."""
    from discernment.reporting import comparison_figures, figures

    found = outcomes(samples)
    looks = {method: mark(number) for number, method in enumerate(results.methods)}
    table = columns(results)
    categories = category_failures(found, results.methods)
    context: dict[str, Any] = {
        "results": results,
        "redact": redact,
        "prompts": len(found),
        "legend_entries": [(method, legend_symbol(look)) for method, look in looks.items()],
        "symbol": lambda method: legend_symbol(looks[method]),
        "columns": table,
        "groups": [(group, len(list(members))) for group, members in groupby(table, key=lambda c: c.group)],
        "tallies": tallies(results),
        "safety": figures.safety_panels(results),
        "rejection": figures.rejection_panels(
            {method: list(of_method) for method, of_method in samples.items()}, results.benchmarks
        ),
        "categories": categories,
        "failing": [c for c in categories if c.failing],
        "by_category": comparison_figures.failure_panels(categories, results.methods),
        "changes": changes(found, results.methods, results.reference),
        "in_words": label_in_words,
        "benchmark_in_words": benchmark_in_words,
        "limit": COMPLETION_LIMIT,
        "per_category": SHOWN_PER_CATEGORY,
        "per_change": SHOWN_PER_CHANGE,
    }
    return templates().get_template("comparison.html.j2").render(context) + "\n"
