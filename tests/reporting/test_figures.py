from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from statsmodels.stats.proportion import proportion_confint

from discernment.evaluation.metrics import EqualSafety, Score
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.reporting.figures.drawing import Panel
from discernment.reporting.figures.rejection import POINTS_PER_STRIP, rejection_panels
from discernment.reporting.figures.safety import safety_pairs, safety_panels
from discernment.reporting.figures.training import alignment_panels, refinement_panels
from discernment.reporting.marks import MARKERS, SERIES, VARIABLES, legend_symbol, mark
from discernment.reporting.run_files import History, read_run

HOSTILE_NAME = "</text></svg><script>alert(1)</script> $x_1$ & \"'\x1b\u202e\ud800"


def parse(panel: Panel) -> ElementTree.Element:
    root = ElementTree.fromstring(str(panel.svg))
    assert root.tag == "svg"
    return root


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(e.itertext()) for e in root.iter("text")]


def ids(panels: Iterable[Panel]) -> list[str]:
    return [e.attrib["id"] for p in panels for e in parse(p).iter() if "id" in e.attrib]


def draw_all(run_dir: Path) -> list[Panel]:
    run = read_run(run_dir)
    return [
        *safety_panels(run.results),
        *rejection_panels(run.samples, run.results.benchmarks),
        *refinement_panels(run.refinements[0], "refinement-1"),
        *alignment_panels(run.alignments, lambda method: mark(run.results.methods.index(method))),
    ]


@pytest.fixture(scope="module")
def panels(built_run: Path) -> list[Panel]:
    return draw_all(built_run)


def test_a_run_has_its_figures(panels: list[Panel]) -> None:
    assert [p.heading for p in panels] == [
        "Seemingly toxic against toxic prompts", "Benign against toxic prompts",
        "base", "stl", "stl_aug", "dcr",
        "Cosine similarity", "Probe AUROC", "Loss",
        "Training loss", "Validation loss",
    ]  # fmt: skip


def test_figures_follow_the_page(panels: list[Panel]) -> None:
    for panel in panels:
        svg = str(panel.svg)
        assert "var(--" in svg
        assert not re.search(r"(?:fill|stroke|color):\s*(?:#|rgb|black|white)", svg)
        root = parse(panel)
        assert {e.tag for e in root.iter()} <= {
            "svg",
            "title",
            "g",
            "defs",
            "path",
            "use",
            "text",
            "clipPath",
            "rect",
            "tspan",
        }
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == root[0].text
        assert root[0].tag == "title"
        links = [e.attrib["href"] for e in root.iter() if "href" in e.attrib]
        own = {f"#{e.attrib['id']}" for e in root.iter() if "id" in e.attrib}
        assert set(links) <= own
        assert set(re.findall(r"url\((#[^)]+)\)", svg)) <= own


def test_ids_are_unique_on_the_page(panels: list[Panel]) -> None:
    found = ids(panels)
    assert len(found) > 20
    assert len(found) == len(set(found))


def test_figures_are_deterministic(panels: list[Panel], built_run: Path) -> None:
    assert draw_all(built_run) == panels


def score(method: str, label: Label, value: float | None, benchmark: str = "b") -> Score:
    return Score(
        method=method, benchmark=benchmark, label=label,
        metric="defense_success_rate" if label is Label.TOXIC else "compliance_rate",
        value=value, low=value and value - 0.1, high=value and value + 0.1, scored=10, unscored=0, partial=0,
    )  # fmt: skip


def results(*scores: Score) -> Results:
    return Results(
        base_model="m", reference="m", methods=list(dict.fromkeys(s.method for s in scores)),
        benchmarks=list(dict.fromkeys(s.benchmark for s in scores)), scores=list(scores), rankings=[],
        comparisons=[], equal_safety=[], finding="",
    )  # fmt: skip


def on_axes(safety: float, compliance: float) -> tuple[float, float]:
    """Where a point stands: the frame is 344 wide from 44 and 300 high from 28, for values from -2 to 102."""
    return 44 + 344 * (safety + 2) / 104, 28 + 300 * (1 - (compliance + 2) / 104)


def drawn_points(panel: Panel) -> list[tuple[float, float]]:
    return [
        (float(e.attrib["x"]), float(e.attrib["y"]))
        for e in parse(panel).iter("use")
        if "var(--series-1)" in e.attrib.get("style", "")
    ]


def test_the_judges_point_is_where_its_rates_are() -> None:
    (panel,) = safety_panels(results(score("m", Label.TOXIC, 0.75), score("m", Label.SEEMINGLY_TOXIC, 0.5)))
    assert drawn_points(panel) == [pytest.approx(on_axes(75, 50), abs=0.02)]


def test_rates_of_several_replies_are_pooled_by_their_shares() -> None:
    """3.125 of 10 and 0.125 of 10 prompts are 16.25 %; in whole prompts they would be 15."""
    shares = [score("m", Label.TOXIC, value, name) for name, value in (("b", 0.3125), ("c", 0.0125))]
    found = results(*shares, score("m", Label.BENIGN, 0.5))
    row = EqualSafety(
        method="m", against="m", toxic="all", harmless="b", harmless_label=Label.BENIGN, toxic_refused=0.9,
        threshold=0.5, compliance=0.1, low=0, high=1, compliance_against=0.1, difference=0, difference_low=0,
        difference_high=0, curve=[],
    )  # fmt: skip
    (panel,) = safety_panels(found.model_copy(update={"equal_safety": [row]}))
    assert any(at == pytest.approx(on_axes(16.25, 50), abs=0.02) for at in drawn_points(panel))


def test_all_benchmarks_together_are_counted_up() -> None:
    found = results(
        score("m", Label.TOXIC, 0.9, "A"), score("m", Label.TOXIC, 0.2, "B"), score("m", Label.TOXIC, None, "C"),
        score("m", Label.BENIGN, 0.5, "A"),
    )  # fmt: skip
    row = EqualSafety(
        method="m", against="m", toxic="all", harmless="A", harmless_label=Label.BENIGN, toxic_refused=0.55,
        threshold=0.5, compliance=0.5, low=0.4, high=0.6, compliance_against=0.5, difference=0,
        difference_low=0, difference_high=0, curve=[],
    )  # fmt: skip
    (panel,) = safety_panels(found.model_copy(update={"equal_safety": [row]}))
    assert panel.heading == "A (benign) against all benchmarks (toxic)"
    # 9 of 10 and 2 of 10 are refused; the third benchmark has no verdict. The open markers stand there too.
    assert drawn_points(panel) == [pytest.approx(on_axes(55, 50), abs=0.02)] * 3
    low, high = proportion_confint(11, 20, method="wilson")
    ends = [on_axes(100 * low, 50)[0], on_axes(100 * high, 50)[0]]
    bars = [
        re.findall(r"[\d.]+", e.attrib["d"])
        for e in parse(panel).iter("path")
        if "opacity: 0.55" in e.attrib["style"]
    ]
    assert [float(bar[i]) for bar in bars[:1] for i in (0, 2)] == pytest.approx(ends, abs=0.02)


def test_pairs_without_equal_safety() -> None:
    found = results(
        score("m", Label.TOXIC, 0.7, "A"), score("m", Label.SEEMINGLY_TOXIC, 0.7, "A"),
        score("m", Label.TOXIC, 0.7, "B"), score("m", Label.BENIGN, 0.7, "C"), score("n", Label.BENIGN, 0.7, "C"),
    )  # fmt: skip
    assert safety_pairs(found) == [("A", "A", Label.SEEMINGLY_TOXIC), ("A", "C", Label.BENIGN)]
    assert len(safety_panels(found)) == 2
    assert safety_pairs(results(score("m", Label.BENIGN, 0.7))) == []


def test_a_rate_that_is_not_known_is_not_drawn() -> None:
    (panel,) = safety_panels(results(score("m", Label.TOXIC, None), score("m", Label.SEEMINGLY_TOXIC, 0.5)))
    assert "var(--series-1)" not in str(panel.svg)


def sample(p: float | None, label: Label, benchmark: str = "b") -> Sample:
    return Sample(
        prompt_id="1", benchmark=benchmark, label=label, prompt="p", completion="c", finished=True,
        verdict=Verdict.REFUSAL, rejection_probability=p,
    )  # fmt: skip


def test_rejection_panels_tell_the_median() -> None:
    values = [0.9, 0.2, 0.4, 0.0, 0.7]
    samples = [sample(p, Label.TOXIC) for p in values] + [
        sample(1e-9, Label.BENIGN),
        sample(None, Label.BENIGN),
    ]
    base, other = rejection_panels({"base": samples, "other": samples[:1]}, ["b"])
    assert texts(parse(base))[-4:] == [
        "toxic",
        f"median {statistics.median(values):.3f}",
        "benign",
        "median <0.001",
    ]
    dots = [e for e in parse(base).iter("use") if e.attrib.get("style") is None]
    assert len(dots) == len(values)  # shared style; the single benign dot keeps its own
    assert "benign" in texts(parse(other))  # the rows line up over the panels


def test_many_points_are_thinned() -> None:
    samples = [sample((i + 1) / 5001, Label.TOXIC) for i in range(5000)]
    (panel,) = rejection_panels({"m": samples}, ["b"])
    assert len(list(parse(panel).iter("use"))) <= POINTS_PER_STRIP + 10
    assert "median 0.500" in texts(parse(panel))


def test_no_probabilities_no_panels() -> None:
    assert rejection_panels({"m": [sample(None, Label.TOXIC)]}, ["b"]) == []
    assert rejection_panels({"m": [sample(float("nan"), Label.TOXIC)]}, ["b"]) == []
    assert rejection_panels({}, ["b"]) == []
    assert len(rejection_panels({"m": [sample(0.0, Label.TOXIC)]}, ["b"])) == 1


def test_curves_that_were_not_recorded_are_left_out() -> None:
    history = History(["dcr"], [{"step": 0.0, "loss": 2.0}, {"step": 5.0, "loss": 1.0, "retention": 0.1}])
    assert [p.heading for p in refinement_panels(history, "r")] == ["Loss", "Retention loss"]
    assert refinement_panels(History(["dcr"], [{"loss": 1.0}]), "r") == []
    assert alignment_panels([], mark_of) == []


def mark_of(method: str) -> object:
    raise AssertionError(method)


def test_names_cannot_break_out_of_a_figure() -> None:
    name = HOSTILE_NAME
    panels = safety_panels(results(score(name, Label.TOXIC, 0.7, name), score(name, Label.BENIGN, 0.7, "b")))
    panels += rejection_panels(
        {name: [sample(0.5, Label.TOXIC, name), sample(0.5, Label.BENIGN, "b")]}, [name, "b"]
    )
    panels += refinement_panels(History([name], [{"step": 1.0, "loss": 1.0}]), "r")
    assert len(panels) == 3
    for panel in panels:
        root = parse(panel)
        assert "script" not in {e.tag for e in root.iter()}
        assert "<script" not in str(panel.svg)
        str(panel.svg).encode("utf-8")
        assert "alert(1)" in root.attrib["aria-label"]
    assert any("$x_1$" in t or "alert" in t for t in texts(parse(panels[1])))


def test_marks_stay_apart() -> None:
    looks = [(mark(i).colour, mark(i).marker) for i in range(len(SERIES) * len(MARKERS))]
    assert len(set(looks)) == 72
    for i in range(9):
        symbol = ElementTree.fromstring(str(legend_symbol(mark(i))))
        assert VARIABLES[mark(i).colour] in symbol[0].attrib["style"]
