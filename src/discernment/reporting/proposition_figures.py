"""Proposition 1: the measured norm of the gradient kernel against what the similarity of the states bounds it by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

from matplotlib.ticker import FuncFormatter, LogLocator

from discernment.diagnosis.proposition_results import PromptPair, PropositionCheck, RefinementCheck
from discernment.prompts import Label
from discernment.reporting.figures import WIDTH, Panel, axes_of, name_axes, power_of_ten
from discernment.reporting.marks import MUTED, Mark, mark
from discernment.reporting.svg import FONT_SIZE, drawing_style, inline_svg
from discernment.reporting.words import label_in_words

__all__ = ["POINTS_PER_GROUP", "proposition_legend", "proposition_panels"]

POINTS_PER_GROUP = 120

GROUPS = {pair: mark(number) for number, pair in enumerate(combinations_with_replacement(Label, 2))}


def proposition_legend(check: RefinementCheck) -> list[tuple[str, Mark]]:
    """The kinds of pairs that were measured, in words, and what they look like."""
    found = {pair.labels for side in (check.before, check.after) for pair in side.pairs}
    return [(pair_of_labels(*pair), look) for pair, look in GROUPS.items() if pair in found]


def pair_of_labels(one: Label, other: Label) -> str:
    """Two labels in words: `toxic with seemingly toxic`."""
    return f"{label_in_words[one]} with {label_in_words[other]}"


def proposition_panels(check: RefinementCheck, identity: str) -> list[Panel]:
    """The frozen form of the bound before and after stage 1, log-log and on the same axes.

    Every point is a pair of test prompts, at most 120 of each two labels. A bound that is not positive is drawn on
    the left edge.
    """
    sides = {"Before stage 1": check.before, "After stage 1": check.after}
    values = [
        value for side in sides.values() for pair in side.pairs for value in (pair.trained_norm, pair.frozen_bound)
    ]  # fmt: skip
    positive = [value for value in values if value > 0]
    if not positive:
        return []
    limits = min(positive) / 1.6, max(positive) * 1.6
    with drawing_style():
        return [
            _panel(heading, side, limits, f"{identity}-{number}")
            for number, (heading, side) in enumerate(sides.items(), start=1)
        ]


def _panel(heading: str, check: PropositionCheck, limits: tuple[float, float], identity: str) -> Panel:
    figure, axes = axes_of(WIDTH, 372)
    name_axes(axes, "bound  (looser →)", f"kernel norm of layers 1 to {check.layer}, measured")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set(xlim=limits, ylim=limits)
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(LogLocator(base=10, numticks=7))
        side.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.plot(limits, limits, color=MUTED, linewidth=0.9, dashes=(2, 3), zorder=2)
    axes.text(
        0.97,
        0.04,
        "the bound holds",
        color=MUTED,
        fontsize=FONT_SIZE - 1,
        ha="right",
        transform=axes.transAxes,
    )
    for group, look in GROUPS.items():
        pairs = _thinned([pair for pair in check.pairs if pair.labels == group])
        axes.plot(
            [max(pair.frozen_bound, limits[0]) for pair in pairs],
            [max(pair.trained_norm, limits[0]) for pair in pairs],
            look.marker, color=look.colour, markersize=3.6, alpha=0.6, markeredgewidth=0, zorder=3, clip_on=False,
        )  # fmt: skip
    return Panel(heading, inline_svg(figure, identity, f"{heading}: kernel norm against its bound, log-log"))


def _thinned(pairs: Sequence[PromptPair]) -> Sequence[PromptPair]:
    return pairs[:: math.ceil(len(pairs) / POINTS_PER_GROUP) or 1]
