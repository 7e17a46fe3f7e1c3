"""The figure of several seeds: each method under each seed, and beside it the differences to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.ticker import MaxNLocator

from discernment.evaluation.seed_results import Quantity, SeedComparison, SeedResults, reference_values
from discernment.reporting.figures import WIDTH, Panel, axes_of
from discernment.reporting.marks import INK, MUTED, SURFACE, Mark, mark
from discernment.reporting.svg import drawing_style, inline_svg
from discernment.reporting.text import visible
from discernment.reporting.words import label_in_words

__all__ = ["seed_panels"]

ROW_HEIGHT = 30
NAME_WIDTH = 110
NAME_LENGTH = 15
AXES: dict[Quantity, tuple[str, str]] = {
    "equal_safety": ("answered at equal safety, %", "difference, points"),
    "auroc": ("discernment AUROC", "difference"),
    "rate": ("answered, %", "difference, points"),
}


def seed_panels(results: SeedResults, rows: Sequence[SeedComparison]) -> list[Panel]:
    """Two panels for each benchmark and label: the methods under every seed, and their differences with intervals.

    Args:
        results: Names the methods.
        rows: Comparisons of one quantity; the methods of one benchmark and label together.
    """
    places = list(dict.fromkeys((row.benchmark, row.label) for row in rows))
    panels = []
    with drawing_style():
        for number, (benchmark, label) in enumerate(places, start=1):
            here = [row for row in rows if (row.benchmark, row.label) == (benchmark, label)]
            heading = f"{benchmark}, {label_in_words[label]}"
            panels += [
                _values(results, here, heading, f"values-{number}"),
                _differences(results, here, heading, f"differences-{number}"),
            ]
    return panels


def _values(results: SeedResults, rows: Sequence[SeedComparison], heading: str, identity: str) -> Panel:
    words = AXES[rows[0].quantity][0]
    figure, axes = _axes(results, words)
    scale = _scale(rows[0])
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
            _dot(axes, look, fmean(of_seed), place)
    axes.margins(x=0.08)
    return Panel(heading, inline_svg(figure, identity, f"{heading}: {words}, by method and seed"))


def _differences(results: SeedResults, rows: Sequence[SeedComparison], heading: str, identity: str) -> Panel:
    figure, axes = _axes(results, AXES[rows[0].quantity][1])
    scale = _scale(rows[0])
    axes.axvline(0, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
    for row in rows:
        place = results.methods.index(row.method)
        look = mark(place)
        style = {"color": look.colour, "zorder": 2, "clip_on": False}
        axes.plot([scale * row.low, scale * row.high], [place] * 2, linewidth=1.4, **style)
        axes.plot(
            [scale * row.seeds_low, scale * row.seeds_high], [place] * 2, linewidth=4.5, alpha=0.45, **style
        )
        _dot(axes, look, scale * row.difference, place)
    axes.margins(x=0.08)
    title = f"{heading}: differences to {results.reference} with 95 % intervals"
    return Panel(f"{heading}, minus {results.reference}", inline_svg(figure, identity, title))


def _axes(results: SeedResults, words: str) -> tuple[Any, Any]:
    methods = results.methods
    figure, axes = axes_of(WIDTH, 56 + ROW_HEIGHT * len(methods), left=NAME_WIDTH, top=8)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks(range(len(methods)), [_shortened(visible(m)) for m in methods], color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(words, color=MUTED, labelpad=6)
    return figure, axes


def _dot(axes: Any, look: Mark, x: float, y: float) -> None:
    axes.plot(
        x, y, look.marker, color=look.colour, markersize=8, markeredgecolor=SURFACE, markeredgewidth=1.0, zorder=4,
        clip_on=False,
    )  # fmt: skip


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def _scale(row: SeedComparison) -> int:
    return 1 if row.quantity == "auroc" else 100
