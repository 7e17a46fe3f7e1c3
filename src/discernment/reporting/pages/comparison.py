"""The page of a comparison, with the prompts that still fail, and the files beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from discernment.evaluation.failures import category_failures, changes, outcomes
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample
from discernment.files import write_json, write_text
from discernment.reporting.marks import mark
from discernment.reporting.pages.template import render
from discernment.reporting.tables.csv_files import write_tables, write_verdicts
from discernment.reporting.tables.methods import columns, spans, tallies

COMPLETION_LIMIT = 800
SHOWN_PER_CATEGORY = 10
SHOWN_PER_CHANGE = 24


def write_comparison(
    results: Results, samples: Mapping[str, Sequence[Sample]], out: Path, *, redact: bool = False
) -> Path:
    """Write `results.json`, the tables `*.csv` and `comparison.html` into `out`.

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
    from discernment.reporting.figures.failures import failure_panels
    from discernment.reporting.figures.rejection import rejection_panels
    from discernment.reporting.figures.safety import safety_panels

    found = outcomes(samples)
    categories = category_failures(found, results.methods)
    context = {
        "results": results,
        "redact": redact,
        "prompts": len(found),
        "looks": {method: mark(number) for number, method in enumerate(results.methods)},
        "columns": columns(results),
        "tallies": tallies(results),
        "safety": safety_panels(results),
        "rejection": rejection_panels(samples, results.benchmarks),
        "categories": categories,
        "failing": [c for c in categories if c.failing],
        "by_category": failure_panels(categories, results.methods),
        "changes": changes(found, results.methods, results.reference),
        "limit": COMPLETION_LIMIT,
        "per_category": SHOWN_PER_CATEGORY,
        "per_change": SHOWN_PER_CHANGE,
    }
    return render("comparison", context, spans=spans)
