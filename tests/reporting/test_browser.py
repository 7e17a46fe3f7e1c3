# ruff: noqa: RUF001 - the report's own dashes and minus signs
"""The report in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import DESKTOP, PHONE, Browser, chromium
from discernment.reporting.pages.run import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, build_run: Any) -> Path:
    return write_report(build_run(tmp_path_factory.mktemp("browser") / "run"))


@pytest.fixture(scope="module")
def wide_page(tmp_path_factory: pytest.TempPathFactory, build_run: Any) -> Path:
    """Many benchmarks, and names without a place to break."""
    benchmarks = {
        "A" * 70: {"toxic": 20, "seemingly_toxic": 20},
        "OR-Bench hard": {"seemingly_toxic": 20},
        "AdvBench": {"toxic": 20},
        "general": {"benign": 20},
    }
    methods = ("base", "stl", "m" * 60, "dcr", "dcr_late")
    run = build_run(tmp_path_factory.mktemp("wide") / "run", "n" * 90, methods=methods, benchmarks=benchmarks)
    return write_report(run)


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("name", ["page", "wide_page"])
def test_nothing_sticks_out(browser: Browser, name: str, width: int, request: pytest.FixtureRequest) -> None:
    browser.open(request.getfixturevalue(name), width)
    assert browser.evaluate("window.innerWidth") == width
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.querySelectorAll('details[open]').length") > 0
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width


def test_the_page_opens_without_a_word_in_the_console(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    assert browser.evaluate("document.querySelector('h1').textContent")
    assert browser.console() == []


def test_no_script_ran_and_no_markup_broke_out(browser: Browser, page: Path) -> None:
    browser.open(page, DESKTOP)
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("document.images.length") == 0
    assert browser.evaluate("document.title") == "quickstart – discernment report"
    assert browser.evaluate("getComputedStyle(document.body).display") == "block"
    shown = browser.evaluate(
        "[...document.querySelectorAll('.completion, .prompt')].map(e => e.textContent).join('\\n')"
    )
    assert "<script>document.title = 'owned'</script>" in shown
    assert browser.evaluate("document.querySelector('footer').parentElement.tagName") == "BODY"


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_figures_have_a_size_and_legible_text(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('.panel svg')].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(sizes) >= 8
    assert all(200 < w <= width and h > 120 for w, h in sizes)
    texts = browser.evaluate(
        "[...document.querySelectorAll('.panel svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert texts
    assert min(texts) >= 9


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_contrasts_with_the_page(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, DESKTOP, dark=dark)
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    colours = browser.evaluate(
        "[...new Set([...document.querySelectorAll('p, td, th, dt, dd, li, a, figcaption, caption, summary, .label,"
        " .outcome')].map(e => getComputedStyle(e).color))]"
    )
    drawn = browser.evaluate(
        "[...new Set([...document.querySelectorAll('.panel svg text')].map(e => getComputedStyle(e).fill))]"
    )
    assert len(colours) >= 4
    assert drawn
    assert (luminance(background) < 0.05) is dark
    assert {c: r for c in colours + drawn if (r := contrast(c, background)) < 4.5} == {}
    lines = browser.evaluate(
        "[...new Set([...document.querySelectorAll('.legend svg path')].map(e => getComputedStyle(e).stroke))]"
        ".filter(c => c != 'none')"
    )
    assert len(lines) >= 4
    assert {c: r for c in lines if (r := contrast(c, background)) < 3} == {}


def luminance(colour: str) -> float:
    """Relative luminance of an `rgb(r, g, b)`, by the definition of WCAG 2."""
    shares = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
