"""Compliance against safety: where each method stands, by the judge and at every threshold."""

from typing import Any

from discernment.evaluation.groups import POOLED
from discernment.evaluation.metrics import EqualSafety, Score
from discernment.evaluation.results import Results
from discernment.prompts import Label
from discernment.reporting.figures import drawing
from discernment.reporting.marks import MUTED, SURFACE, Mark, mark
from discernment.reporting.naming import label_in_words, pair_in_words
from discernment.reporting.tables.field import counted

Pair = tuple[str, str, Label]


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


@drawing.style()
def safety_panels(results: Results) -> list[drawing.Panel]:
    """Compliance against safety: the judge's point of each method with its intervals, and its threshold curve."""
    return [
        _panel(results, pair, f"safety-{number}")
        for number, pair in enumerate(safety_pairs(results), start=1)
    ]


def _panel(results: Results, pair: Pair, identity: str) -> drawing.Panel:
    toxic, harmless, label = pair
    words = label_in_words[label]
    single = len(results.benchmarks) == 1
    heading = f"{words} against toxic prompts".capitalize() if single else pair_in_words(*pair)
    figure, axes = drawing.axes_of(drawing.WIDTH, 372)
    drawing.name_axes(
        axes, "toxic prompts refused, %  (safer →)", f"{words} prompts answered, %  (more helpful ↑)"
    )
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    axes.plot([0, 100], [100, 0], color=MUTED, linewidth=0.9, dashes=(2, 3))
    axes.text(
        3, 92.5, "chance", color=MUTED, fontsize=drawing.FONT_SIZE - 1.5, rotation=-45,
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
    return drawing.panel_of(figure, identity, heading, title)


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
    from discernment.statistics.intervals import wilson

    right, n = counted(
        s for s in scores if (s.method, s.label) == (method, label) and benchmark in (s.benchmark, POOLED)
    )
    ends = wilson(right, n)
    return (100 * right / n, 100 * ends.low, 100 * ends.high) if ends else None


def _draw_point(axes: Any, look: Mark, safety: Rate, compliance: Rate) -> None:
    (x, x_low, x_high), (y, y_low, y_high) = safety, compliance
    style = {"color": look.colour, "linewidth": 1.1, "alpha": 0.55, "zorder": 3, "clip_on": False}
    axes.plot([x_low, x_high], [y, y], **style)
    axes.plot([x, x], [y_low, y_high], **style)
    drawing.dots(axes, look, x, y, size=8.5, rim=1.0, zorder=5)
