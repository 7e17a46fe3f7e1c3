"""The kernel of a diagnosis: a heat map of all pairs of prompts, and the share of each part of the model."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator

from discernment.diagnosis.diagnosis import Diagnosis
from discernment.reporting.figures import drawing
from discernment.reporting.marks import INK, MUTED, RULE, SURFACE, WITHIN
from discernment.reporting.naming import label_in_words

SHADES = 24
FAINTEST = 0.06
HEAT = WITHIN.colour

Floats = npt.NDArray[np.float64]


@drawing.style()
def heat_maps(diagnosis: Diagnosis) -> list[drawing.Panel]:
    """The similarity of all pairs of prompts, group by group: row-normalised and symmetric."""
    return [
        _heat_map(diagnosis, "Row-normalised, as in the paper", diagnosis.row_normalised, "heat-1"),
        _heat_map(diagnosis, "Symmetric", diagnosis.symmetric, "heat-2"),
    ]


def _heat_map(
    diagnosis: Diagnosis, heading: str, matrix: Sequence[Sequence[float | None]], identity: str
) -> drawing.Panel:
    values = np.array(matrix, dtype=np.float64)
    n = len(values)
    low, high = _range(values)
    figure, axes = drawing.axes_of(drawing.WIDTH, 384, left=96, top=26, bottom=66)
    axes.set(xlim=(0, n), ylim=(n, 0), xticks=[], yticks=[], aspect="equal", anchor="NW")
    axes.spines[:].set_visible(False)
    _draw_cells(axes, values, low, high)
    start = 0
    for label, members in groupby(diagnosis.kernel_prompts, key=lambda prompt: prompt.label):
        name, size = label_in_words[label], len(list(members))
        middle = start + size / 2
        axes.text(-0.02 * n, middle, name.replace(" ", "\n"), color=INK, ha="right", va="center")
        axes.text(middle, -0.02 * n, name, color=INK, ha="center", va="bottom")
        if start:
            axes.plot([0, n], [start, start], color=SURFACE, linewidth=2)
            axes.plot([start, start], [0, n], color=SURFACE, linewidth=2)
        start += size
    _draw_scale(figure, low, high)
    title = f"{heading} kernel similarity of {n} prompts by group: rows are moved by steps on columns"
    return drawing.panel_of(figure, identity, heading, title)


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
    axes.spines[:].set_visible(False)
    for shade in range(SHADES):
        corners = [[shade, 0], [shade + 1, 0], [shade + 1, 1], [shade, 1], [shade, 0]]
        axes.add_patch(_patch(Outline(corners, closed=True), shade))
    for place, value, side in ((0, low, "left"), (SHADES, high, "right")):
        axes.text(place, -0.5, f"{value:.2f}", color=MUTED, ha=side, va="top", fontsize=drawing.FONT_SIZE)


@drawing.style()
def share_panels(diagnosis: Diagnosis) -> list[drawing.Panel]:
    """The share of each part of the model in the kernel of seemingly toxic with toxic prompts."""
    parts = [part for part in diagnosis.parts if part.mean is not None]
    if len(parts) < 2:
        return []
    names = [part.part.removeprefix("layer ") for part in parts]
    numbered = [name.isdigit() for name in names]
    figure, axes = drawing.axes_of(drawing.WIDTH + 120, 260, left=46, top=26, bottom=76)
    drawing.name_axes(axes, "", "share of the kernel, %")
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
    return [drawing.panel_of(figure, "shares", "Where the kernel comes from", title)]
