"""What tells the labels apart, layer by layer."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from discernment.diagnosis.diagnosis import Diagnosis
from discernment.reporting.figures import drawing
from discernment.reporting.marks import ACROSS, MUTED, RULE, WITHIN, Mark, mark

AUROC = "AUROC on other sources"
PROBE, DIRECTION = mark(4), mark(2)


def layer_legend(diagnosis: Diagnosis) -> list[tuple[str, Mark]]:
    """The lines of the layer panels, in words."""
    cosines = [("within a label", WITHIN), ("across the labels", ACROSS)]
    if diagnosis.separability[0].probe_auroc is None:
        return cosines
    return [("linear probe, with its standard error", PROBE), ("difference of means", DIRECTION), *cosines]


@drawing.style()
def layer_panels(diagnosis: Diagnosis) -> list[drawing.Panel]:
    """Probe AUROC, cosine similarity and silhouette after every layer; what could not be measured is left out."""
    layers = diagnosis.separability
    curves: dict[str, list[tuple[Mark, list[float | None]]]] = {
        AUROC: [(PROBE, [f.probe_auroc for f in layers]), (DIRECTION, [f.direction_auroc for f in layers])],
        "Cosine similarity": [(WITHIN, [f.within for f in layers]), (ACROSS, [f.cross for f in layers])],
        "Silhouette": [(PROBE, [f.silhouette for f in layers])],
    }
    return [
        _panel(diagnosis, heading, lines, f"layers-{number}")
        for number, (heading, lines) in enumerate(curves.items(), start=1)
        if any(value is not None for _, values in lines for value in values)
    ]


def _panel(
    diagnosis: Diagnosis, heading: str, lines: Sequence[tuple[Mark, Sequence[float | None]]], identity: str
) -> drawing.Panel:
    figure, axes = drawing.axes_of(drawing.NARROW, 240, left=46, top=26)
    drawing.name_axes(axes, "after layer", "")
    places = [f.layer for f in diagnosis.separability]
    chosen = diagnosis.recommendation.layer
    axes.axvline(chosen, color=MUTED, linewidth=0.9, dashes=(4, 3), zorder=1)
    axes.annotate(
        f"layer {chosen}", (chosen, 1), xytext=(0, 4), xycoords=("data", "axes fraction"),
        textcoords="offset points", color=MUTED, ha="center", va="bottom",
    )  # fmt: skip
    if heading == AUROC:
        axes.axhline(0.5, color=MUTED, linewidth=0.9, dashes=(2, 3), zorder=1)
    for look, values in lines:
        known = np.array(values, dtype=np.float64)
        if heading == AUROC and look is PROBE:
            around = np.array([f.probe_error for f in diagnosis.separability], dtype=np.float64)
            axes.fill_between(
                places, known - around, known + around, facecolor=look.colour, edgecolor="none", alpha=0.18
            )
        drawing.line(axes, look, places, known, 1.5, 4.4)
    axes.margins(x=0.03, y=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.axhline(axes.get_ylim()[0], color=RULE, linewidth=0.8)
    title = f"{heading} of toxic and seemingly toxic prompts after every layer"
    return drawing.panel_of(figure, identity, heading, title)
