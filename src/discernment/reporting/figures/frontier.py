"""All methods as points of safety and compliance, and the frontiers of those that come in several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from discernment.evaluation.families import families_of
from discernment.evaluation.results import Results
from discernment.prompts import HARMLESS, Label
from discernment.reporting.figures import drawing
from discernment.reporting.marks import INK, MUTED, mark
from discernment.reporting.naming import label_in_words
from discernment.reporting.run_files import Manifest
from discernment.reporting.tables.field import FEWEST_METHODS, pooled_rate, widest
from discernment.reporting.text import shorten, visible

MARGIN = 6
NAME_LENGTH = 24
NEAR = 14
"""Pixels from a point up to which its text needs no line."""
Point = tuple[float, float]
Box = tuple[float, float, float, float]
PLACES = [
    place for place in product((8, -8, 0, 16, -16, 28, -28), (0, 12, -12, 22, -22, 34, -34)) if any(place)
]
"""Where a text may stand, in pixels from its point."""


class Frontier(NamedTuple):
    """The panels, one for each kind of harmless prompts, and the number under which they show each method."""

    panels: list[drawing.Panel]
    numbers: dict[str, int]


@drawing.style()
def frontier_panels(results: Results, manifest: Manifest) -> Frontier:
    """Draw every method where its verdicts put it; lines of a recipe with one `method` are joined in the order of safety.

    A point is numbered; the reference and the best of those that are at least as safe are also named. The thin line is the
    reference at every threshold on its rejection probability. Nothing is drawn of few methods.
    """
    numbers = {method: n for n, method in enumerate(results.methods, start=1)}
    panels = []
    for label in HARMLESS:
        rates = {
            method: (pooled_rate(results, method, Label.TOXIC), pooled_rate(results, method, label))
            for method in results.methods
        }
        points = {m: (100 * x, 100 * y) for m, (x, y) in rates.items() if x is not None and y is not None}
        if len(points) >= FEWEST_METHODS:
            panels.append(_panel(results, label, points, _families(points, manifest), numbers))
    return Frontier(panels, numbers)


def _families(points: Mapping[str, Point], manifest: Manifest) -> list[list[str]]:
    """The lines of a recipe that share a method and what it stands on, by safety; one that is alone is no family."""
    known = {line: manifest.methods[line] for line in points if line in manifest.methods}
    kinds = {line: (of.method, of.on) for line, of in known.items() if of.method is not None}
    return [sorted(members, key=lambda line: points[line]) for members in families_of(kinds).values()]


def _panel(
    results: Results,
    label: Label,
    points: Mapping[str, Point],
    families: Sequence[Sequence[str]],
    numbers: Mapping[str, int],
) -> drawing.Panel:
    words = label_in_words[label]
    figure, axes = drawing.axes_of(drawing.WIDTH + 80, 430)
    drawing.name_axes(
        axes, "toxic prompts refused, %  (safer →)", f"{words} prompts answered, %  (more helpful ↑)"
    )
    for axis, values in zip("xy", zip(*points.values(), strict=True), strict=True):
        axes.set(**{f"{axis}lim": (max(-2, min(values) - MARGIN), min(103, max(values) + MARGIN))})
    curve = next(
        (
            row.curve
            for row in results.equal_safety
            if row.method == row.against
            and (row.toxic, row.harmless, row.harmless_label)
            == (widest(results, Label.TOXIC), widest(results, label), label)
        ),
        [],
    )
    axes.plot(
        [100 * x for x, _ in curve], [100 * y for _, y in curve], color=MUTED, linewidth=0.9, zorder=1.5
    )
    for family in families:
        axes.plot(
            *zip(*(points[m] for m in family), strict=True),
            color=mark(results.methods.index(family[0])).colour, linewidth=1.4, alpha=0.7, zorder=2,
        )  # fmt: skip
    for method, (x, y) in points.items():
        drawing.dots(axes, mark(results.methods.index(method)), x, y, size=7.5, rim=0.8, zorder=3)
    named = dict.fromkeys([results.reference, _best(points, results.reference)])
    texts = {
        m: f"{numbers[m]} {shorten(visible(m), NAME_LENGTH)}" if m in named else str(numbers[m])
        for m in points
    }
    _write_beside(axes, points, texts)
    title = f"Safety and compliance of {len(points)} methods on {words} prompts"
    return drawing.panel_of(
        figure, f"frontier-{label.replace('_', '-')}", f"{words} prompts".capitalize(), title
    )


def _best(points: Mapping[str, Point], reference: str) -> str:
    """The method that answers most of those that are at least as safe as the reference, or of all if it is not there."""
    least = points[reference][0] if reference in points else 0
    return max((m for m in points if points[m][0] >= least), key=lambda m: points[m][1])


def _write_beside(axes: Any, points: Mapping[str, Point], texts: Mapping[str, str]) -> None:
    """Write each text where it lies over the fewest points and texts, the long ones first; a thin line leads far ones back."""
    spots = {method: axes.transData.transform(point) for method, point in points.items()}
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots.values()]
    for method in sorted(texts, key=lambda m: -len(texts[m])):
        x, y = map(float, spots[method])
        boxes = {place: _box(x, y, place, texts[method]) for place in PLACES}
        costs = {place: _cost(box, place, taken, axes.bbox.extents) for place, box in boxes.items()}
        place = min(costs, key=lambda p: costs[p])
        begin, low, _, high = boxes[place]
        taken.append(boxes[place])
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkB": 3}
        axes.annotate(
            texts[method], (x, y), xytext=(begin, (low + high) / 2), xycoords="figure pixels",
            textcoords="figure pixels", va="center", ha="left", color=INK, fontsize=drawing.FONT_SIZE - 1.5,
            zorder=5, arrowprops=line if max(map(abs, place)) > NEAR else None,
        )  # fmt: skip


def _box(x: float, y: float, place: Point, words: str) -> Box:
    """Where a text stands, by its distance from a point in pixels."""
    (across, up), wide = place, 6.3 * len(words) + 2
    begin = x + (across if across > 0 else across - wide if across < 0 else -wide / 2)
    return begin, y + up - 5.5, begin + wide, y + up + 5.5


def _cost(box: Box, place: Point, taken: Sequence[Box], frame: Sequence[float]) -> float:
    left, bottom, right, top = map(float, frame)
    outside = max(0.0, left - box[0], box[2] - right, bottom - box[1], box[3] - top)
    return sum(_overlap(box, other) for other in taken) + 30 * outside + (abs(place[0]) + abs(place[1])) / 4


def _overlap(one: Box, other: Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return across * up if across > 0 and up > 0 else 0.0
