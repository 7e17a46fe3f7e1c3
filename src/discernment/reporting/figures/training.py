"""The training curves of both stages."""

from collections.abc import Callable, Sequence

from matplotlib.ticker import MaxNLocator

from discernment.reporting.figures import drawing
from discernment.reporting.marks import ACROSS, MUTED, RULE, WITHIN, Mark
from discernment.reporting.run_files import History

Trace = tuple[Mark, tuple[list[float], list[float]]]
"""A line's look, its steps and its values."""


def refinement_panels(history: History, identity: str) -> list[drawing.Panel]:
    """Stage 1: similarity within and across the labels, probe AUROC, loss, retention; what was not recorded is left out."""
    drawings = {
        "Cosine similarity": [(WITHIN, "within_similarity"), (ACROSS, "cross_similarity")],
        "Probe AUROC": [(WITHIN, "probe_auroc")],
        "Loss": [(WITHIN, "loss")],
        "Retention loss": [(WITHIN, "retention")],
    }
    traces = {
        heading: [(look, history.series(key)) for look, key in lines] for heading, lines in drawings.items()
    }
    return _curves(traces, f"stage 1 of {', '.join(history.methods)}", identity)


def alignment_panels(histories: Sequence[History], look_of: Callable[[str], Mark]) -> list[drawing.Panel]:
    """Stage 2: training and validation loss of every method."""
    drawings = {
        heading: [(look_of(h.methods[0]), h.series(key)) for h in histories]
        for heading, key in (("Training loss", "loss"), ("Validation loss", "validation_loss"))
    }
    return _curves(drawings, "stage 2", "alignment")


@drawing.style()
def _curves(drawings: dict[str, list[Trace]], where: str, identity: str) -> list[drawing.Panel]:
    panels = []
    for number, (heading, traces) in enumerate(drawings.items(), start=1):
        recorded = [(look, steps, values) for look, (steps, values) in traces if steps]
        if not recorded:
            continue
        figure, axes = drawing.axes_of(drawing.NARROW, 220, left=40, top=10, bottom=40)
        for look, steps, values in recorded:
            every = max(1, len(steps) // 8)
            drawing.line(axes, look, steps, values, 1.5, 4.8, markevery=every, clip_on=False)
        axes.set_xlabel("step", color=MUTED, labelpad=4)
        axes.margins(x=0.02, y=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.axhline(axes.get_ylim()[0], color=RULE, linewidth=0.8)
        title = f"{heading} over the steps of {where}"
        panels.append(drawing.panel_of(figure, f"{identity}-{number}", heading, title))
    return panels
