"""The report of a run: one HTML file without scripts, made from the run's files and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from discernment.evaluation.results import EqualSafety
from discernment.files import write_text
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.cost import cost_table
from discernment.reporting.examples import ExampleGroup, changed_examples
from discernment.reporting.marks import Mark, label_mark, legend_symbol, mark
from discernment.reporting.page import templates
from discernment.reporting.run_files import Manifest, RunFiles, read_run
from discernment.reporting.table import AUROC, Column, columns, tallies, task_rows
from discernment.reporting.words import benchmark_in_words, label_in_words

__all__ = ["render_report", "write_report"]

QUESTION = "Which of these models refuses what it should, and only that?"
COMPLETION_LIMIT = 1200
PACKAGES_SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "pytorch-metric-learning")


def write_report(run_dir: Path, out: Path | None = None, *, redact: bool = False) -> Path:
    """Write the report of a run as one self-contained HTML file.

    The same files give the same bytes. Sections whose files are missing are left out.

    Args:
        run_dir: The run directory; it must hold `results.json`.
        out: Where to write; `report.html` in the run directory by default.
        redact: Leave out the text of toxic prompts and of the completions to them.

    Returns:
        The path of the report.

    Raises:
        RunError: If there are no results, or a file of the run is damaged.
    """
    out = out or run_dir / "report.html"
    write_text(out, render_report(read_run(run_dir), redact=redact))
    return out


def render_report(run: RunFiles, *, redact: bool = False) -> str:
    """The report as HTML text."""
    from discernment.reporting import dynamics_figures, figures, proposition_figures

    results, manifest = run.results, run.manifest or Manifest()
    looks = {method: mark(number) for number, method in enumerate(results.methods)}

    def look_of(method: str) -> Mark:
        return looks.get(method, mark(0))

    found = columns(results)
    rates, rankings = [c for c in found if c.group != AUROC], [c for c in found if c.group == AUROC]
    before, after = _reference_and_last(run)
    context: dict[str, Any] = {
        "question": QUESTION,
        "name": manifest.name or run.directory.resolve().name,
        "run": run,
        "manifest": manifest,
        "results": results,
        "corrected": any(row.p_holm is not None for row in results.comparisons),
        "base_model": manifest.base_model or results.base_model,
        "redact": redact,
        "method_legend": [(method, legend_symbol(look)) for method, look in looks.items()],
        "symbol": lambda method: legend_symbol(look_of(method)),
        "main_columns": rates + (rankings if len(rankings) <= 2 else []),
        "rankings": rankings if len(rankings) > 2 else [],
        "tallies": tallies(results),
        "tasks": task_rows(results),
        "n_prompts": _prompt_counts(run),
        "safety": figures.safety_panels(results),
        "equal_safety": [row for row in results.equal_safety if row.method != row.against],
        "rejection": figures.rejection_panels(run.samples, results.benchmarks),
        "refinements": [
            (history, figures.refinement_panels(history, f"refinement-{number}"))
            for number, history in enumerate(run.refinements, start=1)
        ],
        "refinement_legend": [
            ("within a label", legend_symbol(figures.WITHIN)),
            ("across the labels", legend_symbol(figures.ACROSS)),
        ],
        "alignment": figures.alignment_panels(run.alignments, look_of),
        "alignment_legend": [
            (", ".join(history.methods), legend_symbol(look_of(history.methods[0])))
            for history in run.alignments
        ],
        "rejection_dynamics": dynamics_figures.rejection_dynamics(run.watches, results.methods),
        "kernel_dynamics": dynamics_figures.kernel_dynamics(run.watches, results.methods),
        "dynamics_legend": [
            (label_in_words[label], legend_symbol(label_mark(label)))
            for label in dynamics_figures.watched_labels(run.watches)
        ],
        "looks_cost": dynamics_figures.looks_cost(run.watches),
        "propositions": [
            (
                check,
                [(name, legend_symbol(m)) for name, m in proposition_figures.proposition_legend(check)],
                proposition_figures.proposition_panels(check, f"proposition-{number}"),
            )
            for number, check in enumerate(run.propositions.refinements if run.propositions else [], start=1)
        ],
        "points_per_group": proposition_figures.POINTS_PER_GROUP,
        "pair_of_labels": proposition_figures.pair_of_labels,
        "before": before,
        "after": after,
        "example_groups": _examples(run, before, after),
        "costs": cost_table(results.methods, manifest),
        "facts": _facts(run, manifest),
        "cut_off": _cut_off(run),
        "in_words": label_in_words,
        "benchmark_in_words": benchmark_in_words,
        "limit": COMPLETION_LIMIT,
    }
    return _environment().get_template("report.html.j2").render(context) + "\n"


def _environment() -> jinja2.Environment:
    environment = templates()
    environment.filters["verdict"] = _verdict
    environment.filters["spans"] = _spans
    return environment


def _spans(table: Iterable[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns of one group, as the group's name and how many there are."""
    return [(group, len(list(members))) for group, members in groupby(table, key=lambda column: column.group)]


def _verdict(row: EqualSafety) -> str:
    """What an interval of a difference says, in words."""
    if row.difference_low > 0:
        return "answers more"
    if row.difference_high < 0:
        return "answers fewer"
    return "no difference shown"


def _reference_and_last(run: RunFiles) -> tuple[str, str | None]:
    reference = run.results.reference
    others = [method for method in run.results.methods if method != reference]
    return reference, others[-1] if others else None


def _examples(run: RunFiles, before: str, after: str | None) -> list[ExampleGroup]:
    if after is None or before not in run.samples or after not in run.samples:
        return []
    return changed_examples(run.samples[before], run.samples[after])


def _prompt_counts(run: RunFiles) -> list[tuple[str, dict[Label, int]]]:
    """How many prompts of each label every benchmark has, by the method that has most."""
    counts: dict[str, dict[Label, int]] = {benchmark: {} for benchmark in run.results.benchmarks}
    for score in run.results.scores:
        of_benchmark = counts.setdefault(score.benchmark, {})
        of_benchmark[score.label] = max(of_benchmark.get(score.label, 0), score.scored + score.unscored)
    return list(counts.items())


def _cut_off(run: RunFiles) -> list[tuple[str, float]]:
    """The share of each method's completions that ran into the token cap."""
    return [
        (method, sum(not s.finished for s in samples) / len(samples))
        for method, samples in run.samples.items()
        if samples
    ]


def _facts(run: RunFiles, manifest: Manifest) -> list[tuple[str, str]]:
    """How the numbers came about, as terms and values; what is not known is left out."""
    shown = [f"{name} {manifest.packages[name]}" for name in PACKAGES_SHOWN if name in manifest.packages]
    facts = [
        ("Base model", manifest.base_model or run.results.base_model),
        ("Reference", run.results.reference),
        ("Judge", manifest.judge or ""),
        ("Software", ", ".join([f"discernment {manifest.discernment}"] * bool(manifest.discernment) + shown)),
        ("Platform", manifest.platform or ""),
        ("Started", text.moment(manifest.created or "")),
        ("Finished", text.moment(manifest.finished or "")),
    ]
    return [(term, value) for term, value in facts if value]
