"""The figure of several seeds: each method under each seed, and beside it the differences to the reference."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.ticker import MaxNLocator

from discernment.evaluation.over_seeds import Quantity, SeedComparison, SeedResults, reference_values
from discernment.reporting.figures import drawing
from discernment.reporting.marks import INK, MUTED, mark
from discernment.reporting.naming import label_in_words
from discernment.reporting.text import visible

ROW_HEIGHT = 30
NAME_WIDTH = 110
NAME_LENGTH = 15
# What the two axes are called, and by what values are multiplied.
AXES: dict[Quantity, tuple[str, str, int]] = {
    "equal_safety": ("answered at equal safety, %", "difference, points", 100),
    "auroc": ("discernment AUROC", "difference", 1),
    "rate": ("answered, %", "difference, points", 100),
    "strict_compliance": ("strict compliance, %", "difference, points", 100),
    "safety_level": ("answered at a fixed level, %", "difference, points", 100),
    "frontier": ("answered along the frontiers, %", "difference, points", 100),
}


@drawing.style()
def seed_panels(results: SeedResults, rows: Sequence[SeedComparison]) -> list[drawing.Panel]:
    """Two panels for each benchmark and label: the methods under every seed, and their differences with intervals.

    Args:
        results: Names the methods.
        rows: Comparisons of one quantity; the methods of one benchmark and label together.
    """
    places = list(dict.fromkeys((row.benchmark, row.label) for row in rows))
    panels = []
    for number, (benchmark, label) in enumerate(places, start=1):
        here = [row for row in rows if (row.benchmark, row.label) == (benchmark, label)]
        heading = f"{benchmark}, {label_in_words[label]}"
        panels += [
            _values(results, here, heading, f"values-{number}"),
            _differences(results, here, heading, f"differences-{number}"),
        ]
    return panels


def _values(
    results: SeedResults, rows: Sequence[SeedComparison], heading: str, identity: str
) -> drawing.Panel:
    words, _, scale = AXES[rows[0].quantity]
    figure, axes = _axes(results, words)
    values = {row.method: row.values for row in rows}
    if (common := reference_values(rows)) is not None:
        values[results.reference] = common
    for place, method in enumerate(results.methods):
        if method in values:
            look, of_seed = mark(place), [scale * v for v in values[method]]
            axes.plot(
                of_seed, [place] * len(of_seed), look.marker, color=look.colour, markersize=4, alpha=0.6,
                markeredgewidth=0, zorder=3, clip_on=False,
            )  # fmt: skip
            drawing.dots(axes, look, fmean(of_seed), place, size=8, rim=1.0, zorder=4)
    axes.margins(x=0.08)
    return drawing.panel_of(figure, identity, heading, f"{heading}: {words}, by method and seed")


def _differences(
    results: SeedResults, rows: Sequence[SeedComparison], heading: str, identity: str
) -> drawing.Panel:
    _, words, scale = AXES[rows[0].quantity]
    figure, axes = _axes(results, words)
    axes.axvline(0, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
    for row in rows:
        place = results.methods.index(row.method)
        look = mark(place)
        style = {"color": look.colour, "zorder": 2, "clip_on": False}
        axes.plot([scale * row.low, scale * row.high], [place] * 2, linewidth=1.4, **style)
        axes.plot(
            [scale * row.seeds_low, scale * row.seeds_high], [place] * 2, linewidth=4.5, alpha=0.45, **style
        )
        drawing.dots(axes, look, scale * row.difference, place, size=8, rim=1.0, zorder=4)
    axes.margins(x=0.08)
    title = f"{heading}: differences to {results.reference} with 95 % intervals"
    return drawing.panel_of(figure, identity, f"{heading}, minus {results.reference}", title)


def _axes(results: SeedResults, words: str) -> tuple[Any, Any]:
    methods = results.methods
    figure, axes = drawing.axes_of(drawing.WIDTH, 56 + ROW_HEIGHT * len(methods), left=NAME_WIDTH, top=8)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks(range(len(methods)), [_shortened(visible(m)) for m in methods], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(words, color=MUTED, labelpad=6)
    return figure, axes


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
