"""The report of a run: one HTML file without scripts, made from the run's files and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from discernment.evaluation.metrics import EqualSafety
from discernment.evaluation.results import Results
from discernment.files import write_text
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.marks import ACROSS, WITHIN, Mark, label_mark, mark
from discernment.reporting.naming import label_in_words, pair_of_labels
from discernment.reporting.pages.examples import changed_examples, freed, headline_pair, seen_differently
from discernment.reporting.pages.template import render
from discernment.reporting.run_files import Manifest, RunFiles, read_run
from discernment.reporting.tables.cost import cost_table
from discernment.reporting.tables.field import field_table
from discernment.reporting.tables.measures import level_in_words, levels_by_place, tasks_by_metric
from discernment.reporting.tables.methods import AUROC, OVER_REFUSAL, QUESTION, columns, spans, tallies

COMPLETION_LIMIT = 1200
PACKAGES_SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "pytorch-metric-learning")

Context = dict[str, Any]
"""What the template prints."""


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
    results, manifest = run.results, run.manifest or Manifest()
    looks = {method: mark(number) for number, method in enumerate(results.methods)}

    def look_of(method: str) -> Mark:
        return looks.get(method, mark(0))

    context: Context = {
        "question": QUESTION,
        "over_refusal": OVER_REFUSAL,
        "name": manifest.name or run.directory.resolve().name,
        "run": run,
        "manifest": manifest,
        "results": results,
        "base_model": manifest.base_model or results.base_model,
        "redact": redact,
        "looks": looks,
        "look_of": look_of,
        "corrected": any(row.p_holm is not None for row in results.comparisons),
        "tasks": tasks_by_metric(results),
        "field": field_table(results, manifest),
        "over_seeds": False,
        "costs": cost_table(results.methods, manifest),
    }
    context |= (
        _methods(results)
        | _frontier(results, manifest)
        | _replies(run)
        | _training(run, look_of)
        | _dynamics(run)
    )
    context |= _propositions(run) | _examples(run) | _measured(run, manifest)
    return render("run", context, verdict=_verdict, spans=spans, level=level_in_words)


def _methods(results: Results) -> Context:
    found = columns(results)
    rates, rankings = [c for c in found if c.group != AUROC], [c for c in found if c.group == AUROC]
    few = len(rankings) <= 2
    return {
        "main_columns": found if few else rates,
        "rankings": [] if few else rankings,
        "tallies": tallies(results),
    }


def _frontier(results: Results, manifest: Manifest) -> Context:
    from discernment.reporting.figures.frontier import frontier_panels

    return {"frontier": frontier_panels(results, manifest)}


def _replies(run: RunFiles) -> Context:
    from discernment.reporting.figures.rejection import rejection_panels
    from discernment.reporting.figures.safety import safety_panels

    return {
        "safety": safety_panels(run.results),
        "equal_safety": [row for row in run.results.equal_safety if row.method != row.against],
        "levels": levels_by_place(run.results),
        "rejection": rejection_panels(run.samples, run.results.benchmarks),
    }


def _training(run: RunFiles, look_of: Callable[[str], Mark]) -> Context:
    from discernment.reporting.figures.training import alignment_panels, refinement_panels

    seeds: dict[str, set[int | None]] = {}
    for history in run.refinements:
        for method in history.methods:
            seeds.setdefault(method, set()).add(history.seed)
    return {
        "refinements": [
            (history, refinement_panels(history, f"refinement-{number}"))
            for number, history in enumerate(run.refinements, start=1)
        ],
        "restarted": {method for method, found in seeds.items() if len(found) > 1},
        "refinement_legend": [("within a label", WITHIN), ("across the labels", ACROSS)],
        "alignment": alignment_panels(run.alignments, look_of),
        "alignment_legend": [(", ".join(h.methods), look_of(h.methods[0])) for h in run.alignments],
    }


def _dynamics(run: RunFiles) -> Context:
    from discernment.reporting.figures import dynamics

    methods = run.results.methods
    return {
        "rejection_dynamics": dynamics.rejection_dynamics(run.watches, methods),
        "kernel_dynamics": dynamics.kernel_dynamics(run.watches, methods),
        "dynamics_legend": [
            (label_in_words[label], label_mark(label)) for label in dynamics.watched_labels(run.watches)
        ],
        "looks_cost": dynamics.looks_cost(run.watches),
    }


def _propositions(run: RunFiles) -> Context:
    from discernment.reporting.figures import proposition

    checks = run.propositions.refinements if run.propositions else []
    return {
        "propositions": [
            (
                check,
                proposition.proposition_legend(check),
                proposition.proposition_panels(check, f"proposition-{number}"),
            )
            for number, check in enumerate(checks, start=1)
        ],
        "points_per_group": proposition.POINTS_PER_GROUP,
        "pair_of_labels": pair_of_labels,
    }


def _examples(run: RunFiles) -> Context:
    """What the method that the run is about changed against the reference."""
    before, after = headline_pair(run.results)
    old, new = run.samples.get(before), run.samples.get(after or "")
    return {
        "before": before,
        "after": after,
        "example_groups": changed_examples(old, new) if old is not None and new is not None else [],
        "freed": freed(run.results, run.samples),
        "disagreements": seen_differently(run.samples, run.second),
        "limit": COMPLETION_LIMIT,
    }


def _measured(run: RunFiles, manifest: Manifest) -> Context:
    """How the numbers came about: terms and values, prompts of each label, shares that ran into the token cap."""
    shown = [f"{name} {manifest.packages[name]}" for name in PACKAGES_SHOWN if name in manifest.packages]
    draws = max((len(s.verdicts) for samples in run.samples.values() for s in samples), default=1)
    facts = {
        "Base model": manifest.base_model or run.results.base_model,
        "Reference": run.results.reference,
        "Judge": manifest.judge,
        "Replies drawn a prompt": str(draws) if draws > 1 else "",
        "Thinking": manifest.thinking,
        "Date in templates": manifest.date,
        "Software": ", ".join([f"discernment {manifest.discernment}"] * bool(manifest.discernment) + shown),
        "Platform": manifest.platform,
        "Started": text.moment(manifest.created or ""),
        "Finished": text.moment(manifest.finished or ""),
    }
    # By the method that has most.
    prompts: dict[str, dict[Label, int]] = {benchmark: {} for benchmark in run.results.benchmarks}
    for score in run.results.scores:
        counts = prompts.setdefault(score.benchmark, {})
        counts[score.label] = max(counts.get(score.label, 0), score.scored + score.unscored)
    return {
        "facts": [(term, value) for term, value in facts.items() if value],
        "n_prompts": prompts.items(),
        "cut_off": [
            (method, sum(not s.finished for s in samples) / len(samples))
            for method, samples in run.samples.items()
            if samples
        ],
    }


def _verdict(row: EqualSafety) -> str:
    """What an interval of a difference says, in words."""
    if row.difference_low > 0:
        return "answers more"
    if row.difference_high < 0:
        return "answers fewer"
    return "no difference shown"
