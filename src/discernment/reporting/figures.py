"""The figures of the report, each a list of small panels that stand side by side or, on a phone, one under another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from discernment.evaluation.results import POOLED, EqualSafety, Results, Score
from discernment.evaluation.sample import Sample
from discernment.prompts import Label
from discernment.reporting.marks import INK, LABEL_COLOURS, MUTED, RULE, SURFACE, Mark, mark
from discernment.reporting.run_files import History
from discernment.reporting.svg import FONT_SIZE, drawing_style, inline_svg
from discernment.reporting.text import shorten, visible
from discernment.reporting.words import label_in_words, pair_in_words

__all__ = [
    "Panel",
    "Trace",
    "alignment_panels",
    "axes_of",
    "name_axes",
    "power_of_ten",
    "refinement_panels",
    "rejection_panels",
    "safety_pairs",
    "safety_panels",
]

WIDTH = 400
NARROW = 320
LOWEST_PROBABILITY = 1e-6
POINTS_PER_STRIP = 160
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Panel:
    """One drawing and what stands over it."""

    heading: str
    svg: Markup


@dataclass(frozen=True)
class Trace:
    """One line of a curve figure."""

    look: Mark
    steps: Sequence[float]
    values: Sequence[float]


Pair = tuple[str, str, Label]


def axes_of(width: int, height: int, left: int = 44, top: int = 28, bottom: int = 44) -> tuple[Figure, Any]:
    """A figure of `width` x `height` CSS pixels (one is 1/72 inch here) with one pair of axes."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    right = 12
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def name_axes(axes: Any, x: str, y: str) -> None:
    """Both names set horizontally: the one of the vertical axis over it, where it is read first."""
    axes.set_xlabel(x, color=MUTED, labelpad=6)
    axes.set_title(y, loc="left", fontsize=FONT_SIZE, color=MUTED, pad=9, x=-0.02)


# ---------------------------------------------------------------------- compliance against safety


def safety_pairs(results: Results) -> list[Pair]:
    """The pairs (toxic benchmark, harmless benchmark, its label) that compliance is set against safety for.

    Those of the equal-safety comparisons; without any (no rejection probabilities), every harmless benchmark with
    the toxic prompts of the same name, or else with the first toxic benchmark.
    """
    pairs = [(row.toxic, row.harmless, row.harmless_label) for row in results.equal_safety]
    if not pairs:
        toxic = [s.benchmark for s in results.scores if s.label is Label.TOXIC]
        pairs = [
            (s.benchmark if s.benchmark in toxic else toxic[0], s.benchmark, s.label)
            for s in results.scores
            if toxic and s.label is not Label.TOXIC
        ]
    return list(dict.fromkeys(pairs))


def safety_panels(results: Results) -> list[Panel]:
    """Compliance against safety: the judge's point of each method with its intervals, and its threshold curve."""
    with drawing_style():
        return [
            _safety_panel(results, pair, f"safety-{number}")
            for number, pair in enumerate(safety_pairs(results), start=1)
        ]


def _safety_panel(results: Results, pair: Pair, identity: str) -> Panel:
    toxic, harmless, label = pair
    words = label_in_words[label]
    single = len(results.benchmarks) == 1
    heading = f"{words} against toxic prompts".capitalize() if single else pair_in_words(*pair)
    figure, axes = axes_of(WIDTH, 372)
    name_axes(axes, "toxic prompts refused, %  (safer →)", f"{words} prompts answered, %  (more helpful ↑)")
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    axes.plot([0, 100], [100, 0], color=MUTED, linewidth=0.9, dashes=(2, 3))
    axes.text(
        3, 92.5, "chance", color=MUTED, fontsize=FONT_SIZE - 1.5, rotation=-45,
        transform_rotates_text=True, rotation_mode="anchor", ha="left", va="top",
    )  # fmt: skip
    rows = [r for r in results.equal_safety if (r.toxic, r.harmless, r.harmless_label) == pair]
    _draw_equal_safety(axes, rows, results)
    for number, method in enumerate(results.methods):
        look = mark(number)
        row = next((r for r in rows if r.method == method), None)
        if row and row.curve:
            x, y = zip(*sorted(row.curve, key=lambda point: (point[0], -point[1])), strict=True)
            axes.plot(
                [100 * v for v in x], [100 * v for v in y],
                color=look.colour, linewidth=1.6, marker=look.marker, markersize=3.8, markeredgewidth=0,
                markevery=0.16, zorder=2.5,
            )  # fmt: skip
        safety = _rate(results.scores, method, toxic, Label.TOXIC)
        compliance = _rate(results.scores, method, harmless, label)
        if safety and compliance:
            _draw_point(axes, look, safety, compliance)
    title = f"Compliance against safety for {', '.join(results.methods)}. {heading}"
    return Panel(heading, inline_svg(figure, identity, title))


def _draw_equal_safety(axes: Any, rows: list[EqualSafety], results: Results) -> None:
    """The common safety as a vertical line, and each method's compliance there as an open marker on its curve."""
    for share in dict.fromkeys(row.toxic_refused for row in rows):
        axes.axvline(100 * share, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
    for row in rows:
        for method, compliance in ((row.method, row.compliance), (row.against, row.compliance_against)):
            if method in results.methods:
                look = mark(results.methods.index(method))
                axes.plot(
                    100 * row.toxic_refused, 100 * compliance, look.marker, markersize=6.5, zorder=4,
                    markerfacecolor=SURFACE, markeredgecolor=look.colour, markeredgewidth=1.4, clip_on=False,
                )  # fmt: skip


Rate = tuple[float, float, float]


def _rate(scores: list[Score], method: str, benchmark: str, label: Label) -> Rate | None:
    """A rate with its interval, in percent; that of all benchmarks together is counted up here."""
    found = [
        s for s in scores if s.method == method and s.label is label and benchmark in (s.benchmark, POOLED)
    ]
    known = [s for s in found if s.value is not None and s.low is not None and s.high is not None]
    if len(known) == 1:
        return (
            100 * float(known[0].value or 0),
            100 * float(known[0].low or 0),
            100 * float(known[0].high or 0),
        )
    if not known:
        return None
    from discernment.statistics.intervals import wilson

    hits, n = sum(round((s.value or 0) * s.scored) for s in known), sum(s.scored for s in known)
    ends = wilson(hits, n)
    return (100 * hits / n, 100 * ends.low, 100 * ends.high) if ends else None


def _draw_point(axes: Any, look: Mark, safety: Rate, compliance: Rate) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = safety, compliance
    style = {"color": look.colour, "linewidth": 1.1, "alpha": 0.55, "zorder": 3, "clip_on": False}
    axes.plot([x_low, x_high], [y, y], **style)
    axes.plot([x, x], [y_low, y_high], **style)
    axes.plot(
        x, y, look.marker, markersize=8.5, color=look.colour, markeredgecolor=SURFACE, markeredgewidth=1.0,
        zorder=5, clip_on=False,
    )  # fmt: skip


# ---------------------------------------------------------------------- rejection probability


def rejection_panels(samples: dict[str, list[Sample]], benchmarks: Sequence[str]) -> list[Panel]:
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
    with drawing_style():
        return [
            _rejection_panel(method, rows, groups, floor, f"rejection-{number}")
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


def _rejection_panel(
    method: str, rows: Sequence[Row], groups: dict[Row, list[float]], floor: float, identity: str
) -> Panel:
    figure, axes = axes_of(WIDTH, 52 + 62 * len(rows), left=14, top=8)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set(xlim=(floor * 0.8, 1.25), ylim=(len(rows) - 0.42, -0.62), yticks=[])
    axes.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("rejection probability", color=MUTED, labelpad=6)
    single = len({benchmark for _, benchmark in rows}) == 1
    for place, row in enumerate(rows):
        label, benchmark = row
        colour = LABEL_COLOURS[label]
        name = (
            label_in_words[label] if single else f"{label_in_words[label]}, {shorten(visible(benchmark), 34)}"
        )
        over_grid = {
            "transform": axes.get_yaxis_transform(),
            "va": "center",
            "bbox": {"facecolor": SURFACE, "edgecolor": "none", "pad": 1.5},
        }
        axes.text(-0.035, place - 0.40, name, color=INK, ha="left", **over_grid)
        values = np.clip(np.sort(groups.get(row, [])), floor, 1.0)
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
    return Panel(
        method,
        inline_svg(figure, identity, f"Rejection probability by prompt group under {method}, log scale"),
    )


def power_of_ten(value: float) -> str:
    """A power of ten as a tick label, such as 10⁻³."""
    exponent = round(math.log10(value))
    return "1" if exponent == 0 else "10" + str(exponent).translate(SUPERSCRIPT)


# ---------------------------------------------------------------------- training curves

WITHIN, ACROSS = mark(3), mark(1)


def refinement_panels(history: History, identity: str) -> list[Panel]:
    """Stage 1: similarity within and across the labels, probe AUROC, loss, retention; what was not recorded is left out."""
    similarity = [
        Trace(look, *history.series(key))
        for look, key in ((WITHIN, "within_similarity"), (ACROSS, "cross_similarity"))
    ]
    single = [
        ("Probe AUROC", "probe_auroc"),
        ("Loss", "loss"),
        ("Retention loss", "retention"),
    ]
    drawings = [("Cosine similarity", similarity)]
    drawings += [(heading, [Trace(WITHIN, *history.series(key))]) for heading, key in single]
    return _curves(drawings, f"stage 1 of {', '.join(history.methods)}", identity)


def alignment_panels(histories: Sequence[History], look_of: Callable[[str], Mark]) -> list[Panel]:
    """Stage 2: training and validation loss of every method."""
    drawings = [
        (heading, [Trace(look_of(h.methods[0]), *h.series(key)) for h in histories])
        for heading, key in (("Training loss", "loss"), ("Validation loss", "validation_loss"))
    ]
    return _curves(drawings, "stage 2", "alignment")


def _curves(drawings: Sequence[tuple[str, list[Trace]]], where: str, identity: str) -> list[Panel]:
    panels = []
    with drawing_style():
        for number, (heading, traces) in enumerate(drawings, start=1):
            traces = [trace for trace in traces if len(trace.steps)]
            if traces:
                svg = _curve(traces, f"{identity}-{number}", f"{heading} over the steps of {where}")
                panels.append(Panel(heading, svg))
    return panels


def _curve(traces: Sequence[Trace], identity: str, title: str) -> Markup:
    figure, axes = axes_of(NARROW, 220, left=40, top=10, bottom=40)
    for trace in traces:
        look = trace.look
        axes.plot(
            trace.steps, trace.values, color=look.colour, linewidth=1.5, marker=look.marker, markersize=4.8,
            markeredgecolor=SURFACE, markeredgewidth=0.6, markevery=max(1, len(trace.steps) // 8), clip_on=False,
        )  # fmt: skip
    axes.set_xlabel("step", color=MUTED, labelpad=4)
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.axhline(axes.get_ylim()[0], color=RULE, linewidth=0.8)
    return inline_svg(figure, identity, title)
