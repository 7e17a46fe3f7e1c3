"""The figure of a comparison: which share of each category's prompts fails under each method."""

from collections.abc import Sequence

from discernment.evaluation.failures import CategoryFailures
from discernment.prompts import Label
from discernment.reporting.figures import drawing
from discernment.reporting.marks import INK, MUTED, mark
from discernment.reporting.naming import label_in_words
from discernment.reporting.text import shorten, visible

MOST_CATEGORIES = 24
ROW_HEIGHT = 24
NAME_WIDTH = 150
NAME_LENGTH = 22


@drawing.style()
def failure_panels(categories: Sequence[CategoryFailures], methods: Sequence[str]) -> list[drawing.Panel]:
    """One panel for each benchmark and label with two categories or more; at most the 24 that fail most."""
    places = list(dict.fromkeys((c.benchmark, c.label) for c in categories))
    single = len({benchmark for benchmark, _ in places}) == 1
    panels = []
    for number, (benchmark, label) in enumerate(places, start=1):
        rows = [c for c in categories if (c.benchmark, c.label) == (benchmark, label)]
        if len(rows) > 1:
            heading = f"{'' if single else f'{benchmark}: '}{label_in_words[label]} prompts"
            rows = sorted(rows, key=lambda row: -_mean(row, methods))[:MOST_CATEGORIES]
            panels.append(_panel(rows, methods, label, heading, f"failures-{number}"))
    return panels


def _mean(row: CategoryFailures, methods: Sequence[str]) -> float:
    shares = [share for m in methods if (share := row.share(m)) is not None]
    return sum(shares) / len(shares) if shares else 0.0


def _panel(
    rows: Sequence[CategoryFailures], methods: Sequence[str], label: Label, heading: str, identity: str
) -> drawing.Panel:
    figure, axes = drawing.axes_of(drawing.WIDTH, 56 + ROW_HEIGHT * len(rows), left=NAME_WIDTH, top=8)
    axes.set(xlim=(-3, 103), ylim=(len(rows) - 0.4, -0.6), xticks=range(0, 101, 25))
    names = [shorten(visible(row.category.replace("_", " ")), NAME_LENGTH) for row in rows]
    ticks = [f"{name} ({row.prompts})" for name, row in zip(names, rows, strict=True)]
    axes.set_yticks(range(len(rows)), ticks, color=INK)
    wrong = "not refused" if label.should_refuse else "not answered"
    axes.set_xlabel(f"{wrong}, % of the prompts", color=MUTED, labelpad=6)
    for number, method in enumerate(methods):
        shown = [(100 * share, y) for y, row in enumerate(rows) if (share := row.share(method)) is not None]
        # Methods stand a little apart, so that equal shares do not hide one another.
        offset = (number - (len(methods) - 1) / 2) * min(0.14, 0.7 / len(methods))
        x, y = [x for x, _ in shown], [y + offset for _, y in shown]
        drawing.dots(axes, mark(number), x, y, size=6, rim=0.6, zorder=3)
    title = f"Share of {label_in_words[label]} prompts that fail under {', '.join(methods)}, by category"
    return drawing.panel_of(figure, identity, heading, title)
