"""The figures of a diagnosis: the kernel as a heat map, and what tells the labels apart layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator

from discernment.diagnosis.diagnose_types import Diagnosis
from discernment.prompts import Label
from discernment.reporting.figures import ACROSS, NARROW, WIDTH, WITHIN, Panel, axes_of, name_axes
from discernment.reporting.marks import INK, MUTED, RULE, SURFACE, Mark, mark
from discernment.reporting.svg import FONT_SIZE, drawing_style, inline_svg
from discernment.reporting.words import label_in_words

__all__ = ["heat_maps", "layer_legend", "layer_panels", "share_panels"]

SHADES = 24
FAINTEST = 0.06
PROBE, DIRECTION = mark(4), mark(2)
HEAT = WITHIN.colour

Floats = npt.NDArray[np.float64]


def heat_maps(diagnosis: Diagnosis) -> list[Panel]:
    """The similarity of all pairs of prompts, group by group: row-normalised and symmetric."""
    with drawing_style():
        return [
            _heat_map(diagnosis, "Row-normalised, as in the paper", diagnosis.row_normalised, "heat-1"),
            _heat_map(diagnosis, "Symmetric", diagnosis.symmetric, "heat-2"),
        ]


def _heat_map(
    diagnosis: Diagnosis, heading: str, matrix: Sequence[Sequence[float | None]], identity: str
) -> Panel:
    values = np.array(matrix, dtype=np.float64)
    n = len(values)
    low, high = _range(values)
    figure, axes = axes_of(WIDTH, 384, left=96, top=26, bottom=66)
    axes.set(xlim=(0, n), ylim=(n, 0), xticks=[], yticks=[], aspect="equal", anchor="NW")
    for side in axes.spines.values():
        side.set_visible(False)
    _draw_cells(axes, values, low, high)
    for label, start, size in _runs([p.label for p in diagnosis.kernel_prompts]):
        name = label_in_words[label]
        middle = start + size / 2
        axes.text(-0.02 * n, middle, name.replace(" ", "\n"), color=INK, ha="right", va="center")
        axes.text(middle, -0.02 * n, name, color=INK, ha="center", va="bottom")
        if start:
            axes.plot([0, n], [start, start], color=SURFACE, linewidth=2)
            axes.plot([start, start], [0, n], color=SURFACE, linewidth=2)
    _draw_scale(figure, low, high)
    title = f"{heading} kernel similarity of {n} prompts by group: rows are moved by steps on columns"
    return Panel(heading, inline_svg(figure, identity, title))


def _range(values: Floats) -> tuple[float, float]:
    """What the scale spans: all pairs of different prompts."""
    apart = values[~np.eye(len(values), dtype=bool)]
    apart = apart[np.isfinite(apart)]
    if not apart.size:
        return 0.0, 1.0
    low, high = float(apart.min()), float(apart.max())
    return (low, high) if high > low else (low, low + 1.0)


def _draw_cells(axes: Any, values: Floats, low: float, high: float) -> None:
    """One path a shade: a path for every cell would make the page some ten times as large."""
    shades = np.clip((values - low) / (high - low), 0, 1) * (SHADES - 1)
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY]
    for shade in range(SHADES):
        rows, columns = np.nonzero(np.round(shades) == shade)
        if rows.size:
            corners = np.stack([columns, rows], axis=1)[:, None] + square
            cells = Outline(corners.reshape(-1, 2), codes * len(rows))
            axes.add_patch(_patch(cells, shade))


def _patch(cells: Outline, shade: int) -> PathPatch:
    opacity = FAINTEST + (1 - FAINTEST) * shade / (SHADES - 1)
    return PathPatch(cells, facecolor=HEAT, alpha=opacity, linewidth=0, antialiased=False)


def _draw_scale(figure: Any, low: float, high: float) -> None:
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes((96 / width, 30 / height, (width - 108) / width, 10 / height))
    axes.set(xlim=(0, SHADES), ylim=(0, 1), xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    for shade in range(SHADES):
        corners = [[shade, 0], [shade + 1, 0], [shade + 1, 1], [shade, 1], [shade, 0]]
        axes.add_patch(_patch(Outline(corners, closed=True), shade))
    for place, value, side in ((0, low, "left"), (SHADES, high, "right")):
        axes.text(place, -0.5, f"{value:.2f}", color=MUTED, ha=side, va="top", fontsize=FONT_SIZE)


def _runs(labels: Sequence[Label]) -> list[tuple[Label, int, int]]:
    """Each group with its first row and how many it has."""
    found, start = [], 0
    for label, members in groupby(labels):
        size = len(list(members))
        found.append((label, start, size))
        start += size
    return found


# ---------------------------------------------------------------------- layers


def layer_legend(diagnosis: Diagnosis) -> list[tuple[str, Mark]]:
    """The lines of the layer panels, in words."""
    cosines = [("within a label", WITHIN), ("across the labels", ACROSS)]
    if diagnosis.separability[0].probe_auroc is None:
        return cosines
    return [("linear probe, with its standard error", PROBE), ("difference of means", DIRECTION), *cosines]


def layer_panels(diagnosis: Diagnosis) -> list[Panel]:
    """Probe AUROC, cosine similarity and silhouette after every layer; what could not be measured is left out."""
    layers = diagnosis.separability
    curves: dict[str, list[tuple[Mark, list[float | None]]]] = {
        "AUROC on other sources": [
            (PROBE, [f.probe_auroc for f in layers]),
            (DIRECTION, [f.direction_auroc for f in layers]),
        ],
        "Cosine similarity": [(WITHIN, [f.within for f in layers]), (ACROSS, [f.cross for f in layers])],
        "Silhouette": [(PROBE, [f.silhouette for f in layers])],
    }
    panels = []
    with drawing_style():
        for number, (heading, lines) in enumerate(curves.items(), start=1):
            if all(value is None for _, values in lines for value in values):
                continue
            errors = [f.probe_error for f in layers] if number == 1 else None
            svg = _layer_curve(diagnosis, heading, lines, errors, f"layers-{number}")
            panels.append(Panel(heading, svg))
    return panels


def _layer_curve(
    diagnosis: Diagnosis,
    heading: str,
    lines: Sequence[tuple[Mark, Sequence[float | None]]],
    errors: Sequence[float | None] | None,
    identity: str,
) -> Any:
    figure, axes = axes_of(NARROW, 240, left=46, top=26)
    name_axes(axes, "after layer", "")
    places = [f.layer for f in diagnosis.separability]
    chosen = diagnosis.recommendation.layer
    axes.axvline(chosen, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
    axes.annotate(
        f"layer {chosen}", (chosen, 1), xytext=(0, 4), xycoords=("data", "axes fraction"),
        textcoords="offset points", color=MUTED, ha="center", va="bottom",
    )  # fmt: skip
    if heading.startswith("AUROC"):
        axes.axhline(0.5, color=MUTED, linewidth=0.9, dashes=(2, 3), zorder=1)
    for look, values in lines:
        known = np.array(values, dtype=np.float64)
        if errors is not None and look is PROBE:
            around = np.array(errors, dtype=np.float64)
            axes.fill_between(
                places, known - around, known + around, facecolor=look.colour, edgecolor="none", alpha=0.18
            )
        axes.plot(
            places, known, color=look.colour, linewidth=1.5, marker=look.marker, markersize=4.4,
            markeredgecolor=SURFACE, markeredgewidth=0.6,
        )  # fmt: skip
    axes.margins(x=0.03, y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.axhline(axes.get_ylim()[0], color=RULE, linewidth=0.8)
    return inline_svg(figure, identity, f"{heading} of toxic and seemingly toxic prompts after every layer")


def share_panels(diagnosis: Diagnosis) -> list[Panel]:
    """The share of each part of the model in the kernel of seemingly toxic with toxic prompts."""
    parts = [part for part in diagnosis.parts if part.mean is not None]
    if len(parts) < 2:
        return []
    names = [part.part.removeprefix("layer ") for part in parts]
    numbered = [name.isdigit() for name in names]
    with drawing_style():
        figure, axes = axes_of(WIDTH + 120, 260, left=46, top=26, bottom=76)
        name_axes(axes, "", "share of the kernel, %")
        for place, part in enumerate(parts):
            axes.bar(place, 100 * (part.mean or 0.0), width=0.72, color=HEAT, alpha=0.8, linewidth=0)
            if part.low is not None and part.high is not None:
                axes.plot([place] * 2, [100 * part.low, 100 * part.high], color=INK, linewidth=1)
        axes.axhline(0, color=RULE, linewidth=0.8)
        step = max(1, -(-len(parts) // 16))
        shown = [n for n, name in enumerate(names) if not numbered[n] or (int(name) - 1) % step == 0]
        axes.set_xticks(shown, [names[n] for n in shown])
        for tick, place in zip(axes.get_xticklabels(), shown, strict=True):
            if not numbered[place]:
                tick.set(rotation=90)
        axes.grid(visible=False, axis="x")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        title = "Share of each part of the model in the kernel of seemingly toxic with toxic prompts"
        return [Panel("Where the kernel comes from", inline_svg(figure, "shares", title))]
