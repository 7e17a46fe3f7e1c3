"""Proposition 1 in the report: points where their pair was measured, and the numbers of the file in the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from discernment.diagnosis.refinement_effect import RefinementCheck
from discernment.prompts import Label
from discernment.reporting.figures.drawing import Panel
from discernment.reporting.figures.proposition import POINTS_PER_GROUP, proposition_legend, proposition_panels
from discernment.reporting.marks import VARIABLES, mark
from discernment.reporting.pages.run import write_report

CROSS = (Label.TOXIC, Label.SEEMINGLY_TOXIC)


@pytest.fixture
def content(built_run: Path) -> Any:
    """One refinement of `proposition.json`, to be changed."""
    return json.loads((built_run / "proposition.json").read_text())["refinements"][0]


def points(panel: Panel) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(str(panel.svg))
    groups = [g for g in root.iter("g") if any(child.tag == "use" for child in g)]
    return [
        (float(use.attrib["x"]), float(use.attrib["y"]))
        for group in groups
        for use in group.iter("use")
        if "var(--series" in group.attrib.get("style", "") + use.attrib.get("style", "")
    ]


def set_pairs(content: Any, pairs: list[tuple[float, float]], when: str = "before") -> None:
    first = content[when]["pairs"][0]
    content[when]["pairs"] = [
        first | {"labels": list(CROSS), "frozen_bound": bound, "trained_norm": norm} for bound, norm in pairs
    ]


def test_points_stand_where_their_pair_was_measured(content: Any) -> None:
    set_pairs(content, [(1.0, 1.0), (100.0, 1.0), (-5.0, 10.0)])
    set_pairs(content, [(100.0, 100.0), (1.0, 100.0)], "after")
    before, after = proposition_panels(RefinementCheck.model_validate(content), "p")
    (x1, y1), (x2, y2), (edge, y3) = points(before)
    assert y1 == y2
    assert y3 == pytest.approx((y1 + points(after)[0][1]) / 2, abs=0.02)
    assert edge == 44  # the left edge
    assert points(after)[1][0] == x1  # the same axes
    assert points(after)[0][0] == x2
    low, high = 1 / 1.6, 160
    share = math.log(1 / low) / math.log(high / low)
    assert (x1, y1) == (
        pytest.approx(44 + 344 * share, abs=0.02),
        pytest.approx(328 - 300 * share, abs=0.02),
    )


def test_many_pairs_are_thinned(content: Any) -> None:
    set_pairs(content, [(1.0 + n, 2.0) for n in range(1000)])
    before, _ = proposition_panels(RefinementCheck.model_validate(content), "p")
    assert POINTS_PER_GROUP / 2 < len(points(before)) <= POINTS_PER_GROUP


def test_the_legend_names_the_pairs_that_are_there(content: Any) -> None:
    assert len(proposition_legend(RefinementCheck.model_validate(content))) == 6
    for when in ("before", "after"):
        set_pairs(content, [(1.0, 1.0)], when)
    check = RefinementCheck.model_validate(content)
    assert [name for name, _ in proposition_legend(check)] == ["toxic with seemingly toxic"]
    (_, look), (panel, _) = proposition_legend(check)[0], proposition_panels(check, "p")
    assert VARIABLES[look.colour] == VARIABLES[mark(1).colour]
    assert VARIABLES[look.colour] in str(panel.svg)


def test_nothing_positive_is_no_figure(content: Any) -> None:
    for when in ("before", "after"):
        set_pairs(content, [(-1.0, 0.0)], when)
    assert proposition_panels(RefinementCheck.model_validate(content), "p") == []


def test_numbers_and_findings_stand_in_the_report(run_dir: Path, content: Any) -> None:
    content["before"]["frozen"] |= {"holds": 0.877, "failures": {"feature_norm": 3, "local_linearity": 2}}
    (run_dir / "proposition.json").write_text(json.dumps({"refinements": [content]}))
    page = write_report(run_dir).read_text(encoding="utf-8")
    section = page.partition('<section id="proposition">')[2].partition("</section>")[0]
    for shown in ("87.7", "3.21", "41.5", "0.712", "−0.101", "feature norm (3), local linearity (2)", "0.625", "0.551–0.750"):  # fmt: skip # noqa: RUF001
        assert shown in section
    check = RefinementCheck.model_validate(content)
    plain = section.replace("&#39;", "'")
    for finding in (check.before.finding, check.after.finding, check.comparison.finding):
        assert finding in plain
    assert section.count("<svg") - section.count('class="symbol"') == 2
    assert "Stage 1 of" not in section


def test_each_refinement_has_its_own_figures_and_tables(run_dir: Path, content: Any) -> None:
    evil = "<script>alert(1)</script>\x1b\u202e"
    refinements = [content | {"methods": ["dcr"]}, content | {"methods": ["late", evil]}]
    (run_dir / "proposition.json").write_text(json.dumps({"refinements": refinements}))
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "Stage 1 of <bdi>late, &lt;script&gt;alert(1)&lt;/script&gt;⟨U+001B⟩⟨U+202E⟩</bdi>" in page
    assert page.count('id="table-proposition-') == page.count('id="table-change-') == 2
    assert "<script" not in page


def test_names_of_methods_and_prompts_come_out_as_text(
    tmp_path: Path, build_run: Callable[..., Path]
) -> None:
    evil = "\"><script>alert('name')</script>\x1b\u202e"
    run = build_run(tmp_path / "run", methods=("base", "stl", "other", f"dcr{evil}"))
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="dynamics"' in page
    assert 'id="proposition"' in page
    assert "<script" not in page
    assert not set(page) & {"\x1b", "\u202e"}
