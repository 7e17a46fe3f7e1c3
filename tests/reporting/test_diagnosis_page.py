"""The page of a diagnosis: whole, safe whatever the prompts hold, and readable on any page colour."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from discernment.diagnosis.diagnosis import DiagnoseOptions, Diagnosis, Unscored, diagnose
from discernment.kernel.kernel import KernelOptions
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.prompts import Label, PromptSet, Provenance
from discernment.reporting.figures.kernel import heat_maps
from discernment.reporting.pages.diagnosis import render_diagnosis, write_diagnosis
from discernment.reporting.tables.similarity import similarity_table
from page import Page
from tiny import make_benign, make_model, make_prompts

HOSTILE = "</blockquote></details><script>document.title = 'owned'</script> {{ 7 * 7 }} \x1b[31m\u202ered"
QUICK = DiagnoseOptions(kernel=KernelOptions(k=2, by_layer=True), per_group=3)


def hostile_set() -> PromptSet:
    prompts = [p.model_copy(update={"text": f"{p.text} {HOSTILE} {p.label}"}) for p in make_prompts(4)]
    ids = {p.id: f"<b>{p.id}" for p in prompts}
    prompts = [p.model_copy(update={"id": ids[p.id], "partner": ids[p.partner or ""]}) for p in prompts]
    return PromptSet([*prompts, *make_benign(3)], Provenance(name="<i>mine</i>"))


@pytest.fixture(scope="module")
def policy(tokenizer) -> Policy:
    return Policy(make_model("llama", len(tokenizer)), ChatFormat(tokenizer), "<u>tiny</u>\u202e")


@pytest.fixture(scope="module")
def found(policy: Policy) -> Diagnosis:
    return diagnose(policy, hostile_set(), QUICK)


@pytest.fixture(scope="module")
def page(found: Diagnosis) -> Page:
    return Page(render_diagnosis(found))


def test_the_page_is_whole(page: Page, found: Diagnosis) -> None:
    shown = " ".join(page.text().split())
    assert " ".join(found.finding.split()) in shown
    assert "discern refine" in shown
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["next", "kernel", "layers", "rejection", "pairs", "measured"]
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert {h.removeprefix("#") for h in page.attributes("href") if h.startswith("#")} <= set(ids)
    assert sum(tag == "svg" for tag, _ in page.elements) >= 6 + 4  # figures and the legend's symbols
    for pair in found.groups:
        assert f"{pair.mean:.3f}" in shown


def test_nothing_is_loaded_or_run(page: Page) -> None:
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "img", "link", "iframe", "b>", "u", "i"})
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert not [
        value for name in ("href", "src") for value in page.attributes(name) if not value.startswith("#")
    ]


def test_hostile_text_is_shown_and_does_nothing(page: Page) -> None:
    shown = page.text()
    assert "<script>document.title = 'owned'</script> {{ 7 * 7 }}" in shown
    assert "⟨U+001B⟩" in shown
    assert "⟨U+202E⟩" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "<i>mine</i>" in shown


def test_toxic_texts_are_folded(page: Page, found: Diagnosis) -> None:
    assert found.entangled
    assert "neighbor" not in page.text(outside="details")
    assert "neighbor" in page.text()
    assert "process" in page.text(outside="details")


def test_redaction_leaves_no_toxic_text(found: Diagnosis, tmp_path) -> None:
    path = write_diagnosis(found, tmp_path / "report.html", redact=True)
    source = path.read_text(encoding="utf-8")
    assert "neighbor" not in source
    assert "process" in source
    assert Page(source).text().count("[redacted]") == 3 + len(found.entangled)


def test_the_same_diagnosis_gives_the_same_page(found: Diagnosis) -> None:
    again = Diagnosis.model_validate(found.model_dump(mode="json"))
    assert render_diagnosis(found) == render_diagnosis(again)


def test_figures_follow_the_page_colours(found: Diagnosis) -> None:
    source = render_diagnosis(found)
    drawn = "".join(re.findall(r"<svg.*?</svg>", source, re.DOTALL))
    assert "var(--series-4)" in drawn
    assert re.findall(r"#[0-9a-f]{6}", drawn) == []


def cells(svg: str) -> list[float]:
    """The opacity of each square of a heat map."""
    found = []
    for path in ElementTree.fromstring(svg).iter("path"):
        style, outline = path.get("style") or "", path.get("d") or ""
        opacity = re.search(r"opacity: ([\d.]+)", style)
        if "series-4" in style and path.get("shape-rendering", "crispEdges") == "crispEdges":
            found += [float(opacity[1]) if opacity else 1.0] * len(re.findall("[Mm]", outline))
    return found


def test_the_heat_map_has_a_cell_for_every_scored_pair(found: Diagnosis) -> None:
    n = len(found.kernel_prompts)
    assert n == 9
    shades_of_the_scale = 24
    whole = cells(str(heat_maps(found)[0].svg))
    assert len(whole) == n * n + shades_of_the_scale
    assert max(whole) == 1
    matrix = [
        [None if 0 in (i, j) else v for j, v in enumerate(r)] for i, r in enumerate(found.row_normalised)
    ]
    blank = found.model_copy(update={"row_normalised": tuple(map(tuple, matrix))})
    assert len(cells(str(heat_maps(blank)[0].svg))) == (n - 1) ** 2 + shades_of_the_scale


def test_unscored_prompts_are_named(found: Diagnosis) -> None:
    rows = tuple(Unscored(prompt_id=f"p<{n}", reason="no values") for n in range(25))
    shown = " ".join(Page(render_diagnosis(found.model_copy(update={"unscored": rows}))).text().split())
    assert "Unscored prompts are in no number: p<0 (no values);" in shown
    assert "and 5 more" in shown
    assert "Unscored prompts are in no number" not in Page(render_diagnosis(found)).text()


def test_what_was_not_measured_is_left_out(policy: Policy) -> None:
    options = DiagnoseOptions.model_validate(
        {"kernel": {"rows": "exact"}, "per_group": 1, "most_entangled": 0}
    )
    prompts = make_prompts(3, sources=1)
    page = Page(render_diagnosis(diagnose(policy, prompts, options)))
    shown = page.text()
    assert "Where the kernel comes from" not in shown
    assert "Share of the head" not in shown
    assert "The most entangled pairs" not in shown
    assert "benign" not in shown
    assert "linear probe," not in shown
    assert "A label has only one source" in shown


def test_the_table_for_the_terminal(found: Diagnosis) -> None:
    console = Console(width=120, record=True, force_terminal=False)
    with console.capture() as capture:
        console.print(similarity_table(found))
    lines = capture.get()
    assert "seemingly toxic" in lines
    for pair in found.groups:
        assert f"{pair.mean:.3f}" in lines
    assert [label.value.replace("_", " ") in lines for label in Label] == [True] * 3


def test_a_long_text_is_cut(found: Diagnosis) -> None:
    pair = found.entangled[0].model_copy(update={"harmless_text": "word " * 400})
    source = render_diagnosis(found.model_copy(update={"entangled": (pair,)}))
    assert "(1\u202f400 more characters)" in source
