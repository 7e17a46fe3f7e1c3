"""Rejection probability by prompt group, under each method."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from discernment.evaluation.sample import Sample
from discernment.prompts import Label
from discernment.reporting.figures import drawing
from discernment.reporting.marks import INK, LABEL_COLOURS, MUTED, SURFACE
from discernment.reporting.naming import label_in_words
from discernment.reporting.text import shorten, visible

LOWEST_PROBABILITY = 1e-6
POINTS_PER_STRIP = 160
GOLDEN = (math.sqrt(5) - 1) / 2


@drawing.style()
def rejection_panels(
    samples: Mapping[str, Sequence[Sample]], benchmarks: Sequence[str]
) -> list[drawing.Panel]:
    """One panel a method: the rejection probabilities of each group of prompts, as points with a box, log scale."""
    measured = {method: groups for method, found in samples.items() if (groups := _groups(found, benchmarks))}
    if not measured:
        return []
    smallest = min(
        (p for groups in measured.values() for values in groups.values() for p in values if p > 0), default=1
    )
    floor = max(LOWEST_PROBABILITY, 10 ** math.floor(math.log10(min(smallest, 0.1))))
    rows = list(dict.fromkeys(row for groups in measured.values() for row in groups))
    rows.sort(key=lambda row: (list(Label).index(row[0]), list(benchmarks).index(row[1])))
    return [
        _panel(method, rows, groups, floor, f"rejection-{number}")
        for number, (method, groups) in enumerate(measured.items(), start=1)
    ]


Row = tuple[Label, str]


def _groups(samples: Sequence[Sample], benchmarks: Sequence[str]) -> dict[Row, list[float]]:
    groups: dict[Row, list[float]] = {}
    for sample in samples:
        p = sample.rejection_probability
        if p is not None and math.isfinite(p) and sample.benchmark in benchmarks:
            groups.setdefault((sample.label, sample.benchmark), []).append(p)
    return groups


def _panel(
    method: str, rows: Sequence[Row], groups: dict[Row, list[float]], floor: float, identity: str
) -> drawing.Panel:
    figure, axes = drawing.axes_of(drawing.WIDTH, 52 + 62 * len(rows), left=14, top=8)
    drawing.set_log(axes, "x", most=8)
    axes.set(xlim=(floor * 0.8, 1.25), ylim=(len(rows) - 0.42, -0.62), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("rejection probability", color=MUTED, labelpad=6)
    single = len({benchmark for _, benchmark in rows}) == 1
    over_grid = {
        "transform": axes.get_yaxis_transform(),
        "va": "center",
        "bbox": {"facecolor": SURFACE, "edgecolor": "none", "pad": 1.5},
    }
    for place, (label, benchmark) in enumerate(rows):
        colour = LABEL_COLOURS[label]
        name = label_in_words[label] + ("" if single else f", {shorten(visible(benchmark), 34)}")
        axes.text(-0.035, place - 0.40, name, color=INK, ha="left", **over_grid)
        values = np.clip(np.sort(groups.get((label, benchmark), [])), floor, 1.0)
        if not len(values):
            continue
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        written = f"median {median:.3f}" if median >= 0.001 else "median <0.001"
        axes.text(1, place - 0.40, written, color=MUTED, ha="right", **over_grid)
        axes.fill_betweenx(
            [place - 0.2, place + 0.2], low, high, facecolor=colour, edgecolor="none", alpha=0.16, zorder=2
        )
        shown = np.quantile(values, np.linspace(0, 1, min(len(values), POINTS_PER_STRIP)), method="nearest")
        offset = (np.arange(len(shown)) * GOLDEN) % 1 * 0.34 - 0.17
        axes.plot(
            shown, place + offset, "o", color=colour, markersize=2.8, alpha=0.55, markeredgewidth=0, zorder=3
        )
        axes.plot([median] * 2, [place - 0.24, place + 0.24], color=colour, linewidth=2.4, zorder=4)
    title = f"Rejection probability by prompt group under {method}, log scale"
    return drawing.panel_of(figure, identity, method, title)
