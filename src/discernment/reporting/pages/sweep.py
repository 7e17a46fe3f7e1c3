"""The page of a sweep: its trials, what they are worth, and the trade-off between objectives."""

import math
from pathlib import Path

from discernment.files import write_text
from discernment.reporting import text
from discernment.reporting.pages.template import render
from discernment.runs.search.objective import Objective
from discernment.runs.search.sweep import SweepResults, SweepTrial, Value


def write_sweep(results: SweepResults, out: Path) -> Path:
    """Write the page of a sweep as one HTML file without scripts, and return its path."""
    write_text(out, render_sweep(results))
    return out


def render_sweep(results: SweepResults) -> str:
    """The page as HTML text; the same results give the same text."""
    from discernment.reporting.figures import sweep as figures

    counts = {
        state: sum(t.state == state for t in results.trials) for state in ("complete", "pruned", "failed")
    }
    legend = [("best" if len(results.objectives) == 1 else "on the Pareto front", figures.BEST)]
    legend += [("other", figures.TRIED)]
    legend += [("pruned, mean of its first seeds", figures.PRUNED)] if counts["pruned"] else []
    drawn = any(trial.values is not None for trial in results.trials)
    context = {
        "results": results,
        "finding": best_in_words(results),
        "counts": ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none yet",
        "trials": sorted(results.trials, key=lambda trial: _rank(results, trial)),
        "written": in_words,
        "value": value_in_words,
        "legend_entries": legend,
        "trade_offs": figures.trade_off_panels(results) if drawn else [],
        "over_options": figures.objective_panels(results) if drawn else [],
    }
    return render("sweep", context)


def best_in_words(results: SweepResults) -> str:
    """Which trials are best, in a sentence."""
    best = results.best
    if not best:
        return "No trial is complete."
    if len(results.objectives) == 1:
        (trial,) = best
        return (
            f"Trial {trial.number} is the best: {values_in_words(results, trial)}, "
            f"with {parameters_in_words(trial)}."
        )
    if len(best) == 1:
        return f"Trial {best[0].number} is the best in every objective: {values_in_words(results, best[0])}."
    numbers = ", ".join(str(trial.number) for trial in best)
    return f"On the Pareto front, where no other trial is better in every objective: trials {numbers}."


def parameters_in_words(trial: SweepTrial) -> str:
    """The options of a trial."""
    return "; ".join(f"{key}: {value_in_words(value)}" for key, value in trial.parameters.items())


def values_in_words(results: SweepResults, trial: SweepTrial) -> str:
    """What a trial is worth."""
    pairs = zip(results.objectives, trial.values or [], strict=False)
    return ", ".join(f"{objective.words} {in_words(objective, value)}" for objective, value in pairs)


def in_words(objective: Objective, value: float) -> str:
    """The value of an objective with its unit."""
    match objective.kind:
        case "auroc":
            return text.decimal(value)
        case "seconds":
            return text.duration(value)
        case "equal_safety":
            return f"{text.points(value)} points"
        case _:
            return f"{text.percent(value)} %"


def value_in_words(value: Value) -> str:
    """The value of an option, floats with three digits."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return "none" if value is None else str(value)


def _rank(results: SweepResults, trial: SweepTrial) -> tuple[bool, bool, float, int]:
    """The best first, then by the first objective, those that failed last."""
    value = math.inf
    if trial.values is not None:
        value = -trial.values[0] if results.objectives[0].maximise else trial.values[0]
    return not trial.best, trial.state != "complete", value, trial.number
