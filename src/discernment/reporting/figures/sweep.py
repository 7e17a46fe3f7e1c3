"""The figures of a sweep: its objectives against each other, or its one objective against each option."""

from itertools import combinations
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from discernment.reporting.figures import drawing
from discernment.reporting.marks import INK, mark
from discernment.reporting.text import shorten, visible
from discernment.runs.search.objective import Kind, Objective
from discernment.runs.search.sweep import SweepResults, SweepTrial

TRIED, BEST, PRUNED = mark(3), mark(1), mark(0)
CHOICE_LENGTH = 12
AXES: dict[Kind, str] = {
    "auroc": "discernment AUROC",
    "compliance": "prompts answered, %",
    "refused": "toxic prompts refused, %",
    "equal_safety": "compliance gain at equal safety, points",
    "seconds": "training time, s",
}


@drawing.style()
def trade_off_panels(results: SweepResults) -> list[drawing.Panel]:
    """One panel for each pair of objectives, a dot a trial; those on the Pareto front carry their numbers."""
    return [
        _trade_off(results, x, y, f"trade-off-{number}")
        for number, (x, y) in enumerate(combinations(range(len(results.objectives)), 2), start=1)
    ]


@drawing.style()
def objective_panels(results: SweepResults) -> list[drawing.Panel]:
    """One panel for each option, the objective over it; empty where there are several objectives."""
    if len(results.objectives) > 1:
        return []
    return [
        _over_option(results, key, f"option-{number}") for number, key in enumerate(results.space, start=1)
    ]


def _trade_off(results: SweepResults, first: int, second: int, identity: str) -> drawing.Panel:
    x, y = results.objectives[first], results.objectives[second]
    figure, axes = drawing.axes_of(drawing.WIDTH, 340, left=52)
    drawing.name_axes(axes, f"{AXES[x.kind]}  ({'→' if x.maximise else '←'} better)", AXES[y.kind])
    points = [
        (trial, _scaled(x, trial.values[first]), _scaled(y, trial.values[second]))
        for trial in results.trials
        if trial.state == "complete" and trial.values is not None
    ]
    if len(results.objectives) == 2:  # with more, the front is no line in this plane
        front = sorted((px, py) for trial, px, py in points if trial.best)
        axes.plot(
            [px for px, _ in front], [py for _, py in front], color=BEST.colour, linewidth=1.0, zorder=2
        )
    for trial, px, py in sorted(points, key=lambda point: point[0].best):
        _dot(axes, trial, px, py)
        if trial.best:
            axes.annotate(
                str(trial.number), (px, py), xytext=(6, 4), textcoords="offset points",
                color=INK, fontsize=drawing.FONT_SIZE - 1.5,
            )  # fmt: skip
    axes.margins(0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    heading = f"{_direction(y)} against {_direction(x)}"
    return drawing.panel_of(figure, identity, heading, f"{y.words} against {x.words}, a dot a trial")


def _over_option(results: SweepResults, key: str, identity: str) -> drawing.Panel:
    (objective,) = results.objectives
    dimension = results.space[key]
    figure, axes = drawing.axes_of(drawing.NARROW, 220, left=46, top=10, bottom=40)
    if dimension.choices is not None:
        axes.set_xlim(-0.5, len(dimension.choices) - 0.5)
        words = ["none" if choice is None else str(choice) for choice in dimension.choices]
        names = [shorten(visible(word), CHOICE_LENGTH) for word in words]
        axes.set_xticks(range(len(names)), names)
    elif dimension.log:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=dimension.integer))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    for trial in sorted(results.trials, key=lambda trial: trial.best):
        if trial.values is not None:
            value = trial.parameters[key]
            place = value if dimension.choices is None else dimension.choices.index(value)
            _dot(axes, trial, float(place or 0), _scaled(objective, trial.values[0]))
    axes.margins(0.08)
    return drawing.panel_of(figure, identity, key, f"{objective.words} over {key}, a dot a trial")


def _dot(axes: Any, trial: SweepTrial, x: float, y: float) -> None:
    look = BEST if trial.best else PRUNED if trial.state == "pruned" else TRIED
    size, zorder = (7.5, 4) if trial.best else (5.5, 3)
    drawing.dots(axes, look, x, y, size=size, rim=0.7, zorder=zorder)


def _direction(objective: Objective) -> str:
    return objective.words + ("" if objective.maximise else " (less is better)")


def _scaled(objective: Objective, value: float) -> float:
    return value if objective.kind in ("auroc", "seconds") else 100 * value
