"""Proposition 1: the measured norm of the gradient kernel against what the similarity of the states bounds it by."""

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

from discernment.diagnosis.proposition import PromptPair, PropositionCheck
from discernment.diagnosis.refinement_effect import RefinementCheck
from discernment.prompts import Label
from discernment.reporting.figures import drawing
from discernment.reporting.marks import MUTED, Mark, mark
from discernment.reporting.naming import pair_of_labels

POINTS_PER_GROUP = 120

GROUPS = {pair: mark(number) for number, pair in enumerate(combinations_with_replacement(Label, 2))}


def proposition_legend(check: RefinementCheck) -> list[tuple[str, Mark]]:
    """The kinds of pairs that were measured, in words, and what they look like."""
    found = {pair.labels for side in (check.before, check.after) for pair in side.pairs}
    return [(pair_of_labels(*pair), look) for pair, look in GROUPS.items() if pair in found]


@drawing.style()
def proposition_panels(check: RefinementCheck, identity: str) -> list[drawing.Panel]:
    """The frozen form of the bound before and after stage 1, log-log and on the same axes.

    Every point is a pair of test prompts, at most 120 of each two labels. A bound that is not positive is drawn on
    the left edge.
    """
    sides = {"Before stage 1": check.before, "After stage 1": check.after}
    pairs = [pair for side in sides.values() for pair in side.pairs]
    positive = [value for pair in pairs for value in (pair.trained_norm, pair.frozen_bound) if value > 0]
    if not positive:
        return []
    limits = min(positive) / 1.6, max(positive) * 1.6
    return [
        _panel(heading, side, limits, f"{identity}-{number}")
        for number, (heading, side) in enumerate(sides.items(), start=1)
    ]


def _panel(
    heading: str, check: PropositionCheck, limits: tuple[float, float], identity: str
) -> drawing.Panel:
    figure, axes = drawing.axes_of(drawing.WIDTH, 372)
    drawing.name_axes(axes, "bound  (looser →)", f"kernel norm of layers 1 to {check.layer}, measured")
    drawing.set_log(axes, "xy", most=7)
    axes.set(xlim=limits, ylim=limits)
    axes.plot(limits, limits, color=MUTED, linewidth=0.9, dashes=(2, 3), zorder=2)
    at_corner = {"transform": axes.transAxes, "ha": "right"}
    axes.text(0.97, 0.04, "the bound holds", color=MUTED, fontsize=drawing.FONT_SIZE - 1, **at_corner)
    for group, look in GROUPS.items():
        pairs = _thinned([pair for pair in check.pairs if pair.labels == group])
        axes.plot(
            [max(pair.frozen_bound, limits[0]) for pair in pairs],
            [max(pair.trained_norm, limits[0]) for pair in pairs],
            look.marker, color=look.colour, markersize=3.6, alpha=0.6, markeredgewidth=0, zorder=3, clip_on=False,
        )  # fmt: skip
    return drawing.panel_of(figure, identity, heading, f"{heading}: kernel norm against its bound, log-log")


def _thinned(pairs: Sequence[PromptPair]) -> Sequence[PromptPair]:
    return pairs[:: math.ceil(len(pairs) / POINTS_PER_GROUP) or 1]
