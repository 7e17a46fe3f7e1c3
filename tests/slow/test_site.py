"""The documentation as a site, built as `make docs` builds it, in a real browser that can reach nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from browser import DESKTOP, PHONE, Browser, chromium

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEARCH = """new Promise(resolve => {
  const input = document.querySelector('.md-search__input');
  const list = document.querySelector('.md-search-result__list');
  const titles = () => [...list.querySelectorAll('h1, h2')].map(title => title.textContent.trim());
  new MutationObserver(() => list.children.length && resolve(titles())).observe(list, {childList: true});
  input.focus();
  input.value = WORD;
  input.dispatchEvent(new Event('input', {bubbles: true}));
  input.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true}));
})"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        return


class Anchors(HTMLParser):
    """What a page links to, and what can be linked to on it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = {""}
        self.loaded: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given.get("id") or "", given.get("name") or ""}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        loaded = given.get("src") or (given.get("href") if tag == "link" else None)
        if loaded and "canonical" not in (given.get("rel") or ""):
            self.loaded.append(loaded)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(built)]
    where = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **where}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return built


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Anchors]:
    """Every page by its path on the site; the page for what is not found names its files from the root of a host."""
    files = [path for path in site.rglob("*.html") if path.name != "404.html"]
    found = {str(path.relative_to(site)): Anchors(path.read_text(encoding="utf-8")) for path in files}
    assert len(found) >= len(list((ROOT / "docs").rglob("*.md"))) > 30
    return found


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_every_link_leads_to_a_place_on_the_site(site: Path, pages: dict[str, Anchors]) -> None:
    checked = 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("http", "https"), (name, link)
                continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            file = target / "index.html" if target.is_dir() else target
            assert file.is_file(), (name, link)
            if parts.fragment and file.suffix == ".html":
                there = pages[str(file.resolve().relative_to(site.resolve()))]
                assert unquote(parts.fragment) in there.ids | {"__top"}, (name, link)
            checked += 1
    assert checked > 1000


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[str, Anchors]) -> None:
    loaded = [(name, url) for name, page in pages.items() for url in page.loaded]
    assert len(loaded) > 100
    assert [url for _, url in loaded if urlsplit(url).netloc] == []
    styles = list(site.rglob("*.css"))
    assert len(styles) > 1
    for style in styles:
        assert (
            re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == []
        )


def test_every_public_name_has_its_place_in_the_reference(pages: dict[str, Anchors]) -> None:
    import discernment

    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    top = {f"discernment.{name}" for name in discernment.__all__ if name != "__version__"}
    dotted = {n for n in re.findall(r"`(discernment(?:\.\w+)+)`", text) if n != "discernment.prompts"}
    others = {
        f"{module}.{name.strip()}"
        for module, names in re.findall(r"^from (discernment\.[\w.]+) import (.+)$", text, re.MULTILINE)
        for name in names.split(",")
    }
    assert (len(top) > 25, len(dotted) > 7, len(others) > 3) == (True, True, True)
    assert top | dotted | others <= pages["reference.html"].ids


def test_every_page_opens_without_a_word_and_nothing_sticks_out(
    browser: Browser, address: str, pages: dict[str, Anchors]
) -> None:
    wide = {}
    for name in pages:
        browser.open(f"{address}/{name}", PHONE)
        assert browser.evaluate("document.querySelector('h1').textContent")
        assert browser.evaluate("window.innerWidth") == PHONE
        width = browser.evaluate("document.scrollingElement.scrollWidth")
        if width > PHONE:
            wide[name] = width
        assert browser.console() == [], name
        hosts = browser.evaluate(
            "[...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin))]"
        )
        assert hosts == [address]
    assert wide == {}


def test_wide_tables_scroll_in_a_box_of_their_own(browser: Browser, address: str) -> None:
    browser.open(f"{address}/index.html", PHONE)
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.md-typeset__scrollwrap')]"
        ".map(box => [box.clientWidth, box.scrollWidth, getComputedStyle(box).overflowX])"
    )
    assert boxes
    assert all(width <= PHONE and how == "auto" for width, _, how in boxes)
    assert any(inner > width for width, inner, _ in boxes)


def test_search_finds_the_method(browser: Browser, address: str) -> None:
    browser.open(f"{address}/index.html", DESKTOP)
    titles = browser.evaluate(SEARCH.replace("WORD", "'dcr'"))
    assert len(titles) >= 3
    assert any("DCR" in title for title in titles)
    assert browser.console() == []


def test_the_scheme_can_be_changed(browser: Browser, address: str) -> None:
    browser.open(f"{address}/index.html", DESKTOP, dark=True)
    assert browser.evaluate("document.body.dataset.mdColorScheme") == "slate"
    browser.open(f"{address}/index.html", DESKTOP)
    schemes = []
    for _ in range(3):
        browser.evaluate("document.querySelector('[data-md-component=palette] label:not([hidden])').click()")
        schemes.append(browser.evaluate("document.body.dataset.mdColorScheme"))
    assert set(schemes) == {"default", "slate"}
