"""The curves of the learning dynamics: what is drawn where, on axes that all methods share."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from discernment.prompts import Label
from discernment.reporting.figures.drawing import Panel
from discernment.reporting.figures.dynamics import (
    kernel_dynamics,
    looks_cost,
    rejection_dynamics,
    watched_labels,
)
from discernment.reporting.run_files import Look, Watch

TOXIC, OTHER = Label.TOXIC, Label.SEEMINGLY_TOXIC


def look(step: int, toxic: float = 0.5, other: float | None = 0.25, **more: Any) -> Look:
    rejection = {label: value for label, value in ((TOXIC, toxic), (OTHER, other)) if value is not None}
    kernel = {TOXIC: {TOXIC: 0.8, OTHER: 0.1}, OTHER: {TOXIC: 0.4, OTHER: None}}
    cost = {"seconds": 2.0, "training_seconds": float(step)}
    return Look.model_validate(
        {"step": step, "rejection": rejection, "row_normalised": kernel, "cost": cost, **more}
    )


def lines(panel: Panel, label: Label) -> list[list[tuple[float, float]]]:
    """The lines of a label in the order in which they are drawn, as points in pixels."""
    root = ElementTree.fromstring(str(panel.svg))
    colour = f"stroke: var(--{label.replace('_', '-')})"
    paths = [
        e.attrib["d"] for e in root.iter("path") if colour in e.attrib.get("style", "") and "fill: none" in e.attrib["style"]
    ]  # fmt: skip
    numbers = [[float(n) for n in re.findall(r"[\d.]+", path)] for path in paths]
    return [list(zip(found[::2], found[1::2], strict=True)) for found in numbers]


def words(panel: Panel) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(str(panel.svg)).iter("text")]


RUN = [
    Watch(["stl"], "align", [look(0, 0.1), look(1, 0.2), look(4, 0.6, 0.3)]),
    Watch(["dcr", "held"], "refine", [look(0, 0.1), look(3, 0.2)]),
    Watch(["dcr"], "align", [look(0, 0.2), look(4, 0.8)]),
]


def test_alignment_begins_at_the_same_place_in_every_panel() -> None:
    stl, dcr = rejection_dynamics(RUN, ["base", "stl", "dcr"])
    assert (stl.heading, dcr.heading) == ("stl", "dcr")
    (aligned,) = lines(stl, TOXIC)
    refined, then = lines(dcr, TOXIC)
    assert [x for x, _ in aligned][::2] == [x for x, _ in then]
    assert refined[-1][0] < then[0][0]
    # log2(1 + step): from 0 to 1 as far as from 1 to 3, and 4 lies log2(5) doublings from 0.
    (x0, _), (x1, _), (x4, _) = aligned
    assert (x4 - x0) / (x1 - x0) == pytest.approx(math.log2(5), rel=1e-3)
    assert refined[1][0] - refined[0][0] == pytest.approx(2 * (x1 - x0), rel=1e-3)
    assert {"stage 1", "alignment begins"} <= set(words(dcr))
    assert {"no stage 1", "alignment begins"} <= set(words(stl))


def test_values_stand_at_the_same_height_in_every_panel() -> None:
    stl, dcr = rejection_dynamics(RUN, ["stl", "dcr"])
    heights = dict(zip((0.1, 0.2, 0.6), [y for _, y in lines(stl, TOXIC)[0]], strict=True))
    refined, then = lines(dcr, TOXIC)
    assert [y for _, y in refined] == [heights[0.1], heights[0.2]]
    assert then[0][1] == heights[0.2]
    assert (heights[0.1] - heights[0.6]) / (heights[0.1] - heights[0.2]) == pytest.approx(5, rel=1e-2)


def test_a_shared_stage_is_drawn_for_each_method() -> None:
    _, dcr, held = rejection_dynamics(RUN, ["stl", "dcr", "held"])
    assert lines(held, OTHER) == lines(dcr, OTHER)[:1]


def test_kernel_similarity_is_that_with_toxic_prompts() -> None:
    panel = kernel_dynamics([Watch(["stl"], "align", [look(0), look(2)])], ["stl"])[0]
    (toxic,), (other,) = lines(panel, TOXIC), lines(panel, OTHER)
    floor = max(y for x, y in _axis_line(panel))
    assert (floor - toxic[0][1]) / (floor - other[0][1]) == pytest.approx(0.8 / 0.4, rel=1e-2)
    assert "kernel similarity with toxic prompts" in words(panel)
    assert "alignment begins" not in words(panel)


def _axis_line(panel: Panel) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(str(panel.svg))
    found = [e.attrib["d"] for e in root.iter("path") if "var(--rule)" in e.attrib.get("style", "")]
    numbers = [[float(n) for n in re.findall(r"[\d.]+", path)] for path in found]
    return [(x, y) for n in numbers for x, y in zip(n[::2], n[1::2], strict=False)]


def test_what_was_not_measured_is_left_out() -> None:
    nothing = look(0, math.nan, None, row_normalised={})
    assert rejection_dynamics([Watch(["m"], "align", [nothing])], ["m"]) == []
    assert kernel_dynamics([Watch(["m"], "align", [nothing])], ["m"]) == []
    assert rejection_dynamics([], ["m"]) == []
    assert rejection_dynamics(RUN, ["base"]) == []
    gap = Watch(["m"], "align", [look(0, 0.1), look(1, math.nan), look(2, 0.3)])
    (panel,) = rejection_dynamics([gap], ["m"])
    assert [len(line) for line in lines(panel, TOXIC)] == [2]
    assert lines(panel, Label.BENIGN) == []
    assert watched_labels([gap]) == [TOXIC, OTHER]
    assert rejection_dynamics([Watch(["m"], "align", [look(0, 0.0, 0.0)])], ["m"])


@pytest.mark.parametrize("last", [7, 90, 1000, 123456])
def test_step_numbers_do_not_run_into_each_other(last: int) -> None:
    steps = sorted({0, 1, 2, last - 1, last, *(2**n for n in range(2, 18) if 2**n < last)})
    watches = [Watch(["m"], stage, [look(step) for step in steps]) for stage in ("refine", "align")]
    (panel,) = rejection_dynamics(watches, ["m"])
    root = ElementTree.fromstring(str(panel.svg))
    places = [(float(e.attrib["x"]), e.text or "") for e in root.iter("text") if (e.text or "").isdigit()]
    assert [t for _, t in places].count(str(last)) == [t for _, t in places].count("0") == 2
    for (x, text), (following, other) in pairwise(places):
        if following > x:  # 6.6 is the width of a digit
            assert following - x >= 6.6 * (len(text) + len(other)) / 2
    assert len(places) >= 4


def test_the_cost_counts_a_shared_stage_once() -> None:
    cost = looks_cost(RUN)
    assert cost.seconds == 2.0 * 7
    assert cost.training_seconds == 4 + 3 + 4
    assert cost.share == pytest.approx(14 / 25)
    assert looks_cost([]).share == 0


def test_names_cannot_break_out() -> None:
    evil = "</text></svg><script>alert(1)</script>\x1b\u202e\ud800"
    (panel,) = rejection_dynamics([Watch([evil], "align", [look(0), look(1)])], [evil])
    root = ElementTree.fromstring(str(panel.svg))
    assert "script" not in {e.tag for e in root.iter()}
    assert "alert(1)" in root.attrib["aria-label"]
    str(panel.svg).encode("utf-8")
