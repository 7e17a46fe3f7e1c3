"""The page and the files of a comparison, over hostile samples."""

from __future__ import annotations

import csv
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from discernment.evaluation.flips import FlipCount
from discernment.evaluation.results import Results, TaskScore, summarize
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import read_json
from discernment.prompts import Turn
from discernment.reporting.pages.comparison import render_comparison, write_comparison
from discernment.reporting.tables.csv_files import write_tables

METHODS = ("stl", "dcr", "base")


@pytest.fixture(scope="module")
def samples(built_run: Path) -> dict[str, list[Sample]]:
    methods = read_json(built_run / "manifest.json")["methods"]
    found = {}
    for method in METHODS:
        (stage,) = [s for s in methods[method]["stages"] if s.startswith("evaluate-")]
        found[method] = read_samples(built_run / "stages" / stage / "samples.jsonl")
    return found


@pytest.fixture(scope="module")
def results(samples) -> Results:
    return summarize(samples, base_model="three", reference="stl")


@pytest.fixture(scope="module")
def out(tmp_path_factory, samples, results) -> Path:
    folder: Path = tmp_path_factory.mktemp("comparison") / "new"
    assert write_comparison(results, samples, folder) == folder / "comparison.html"
    return folder


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.events: list[str] = []
        self.links: list[str] = []
        self.toxic_depth: list[int] = []
        self.depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        self.depth += tag == "details"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.events.append(name)
            if name == "href":
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "details"

    def handle_data(self, data: str) -> None:
        if "(harmful answer" in data:
            self.toxic_depth.append(self.depth)


def test_the_page_is_whole_and_acts_on_nothing(out) -> None:
    text = (out / "comparison.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == page.tags["link"] == 0
    assert page.events == []
    assert len(set(page.ids)) == len(page.ids)
    targets = [link.removeprefix("#") for link in page.links if link.startswith("#")]
    assert targets
    assert set(targets) <= set(page.ids)
    assert "&lt;script&gt;" in text
    assert "\u202e" not in text
    assert page.tags["svg"] > len(METHODS)
    for section in ("methods", "safety", "pairs", "rejection", "failures", "changes"):
        assert f'<section id="{section}">' in text


def test_toxic_texts_are_folded_twice(out) -> None:
    page = Page((out / "comparison.html").read_text(encoding="utf-8"))
    assert page.toxic_depth
    assert min(page.toxic_depth) == 2
    assert page.depth == 0


def test_the_same_samples_give_the_same_page(out, samples, results) -> None:
    assert render_comparison(results, samples) == (out / "comparison.html").read_text(encoding="utf-8")


def test_redacted(tmp_path, samples, results) -> None:
    write_comparison(results, samples, tmp_path, redact=True)
    for name in ("comparison.html", "verdicts.csv"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "[redacted]" in text
        assert "harmful answer" not in text
        assert "neighbour" not in text
        assert "chess" in text  # seemingly toxic ones stay
    assert Results.model_validate(read_json(tmp_path / "results.json")) == results


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_tables(out, samples, results) -> None:
    scores = rows(out / "scores.csv")
    assert len(scores) == len(results.scores) > 0
    for row, score in zip(scores, results.scores, strict=True):
        assert (row["method"], row["benchmark"], row["label"]) == (score.method, score.benchmark, score.label)
        assert (float(row["value"]), int(row["scored"])) == (score.value, score.scored)
    comparisons = rows(out / "comparisons.csv")
    assert [float(r["difference"]) for r in comparisons] == [c.difference for c in results.comparisons]
    assert comparisons

    assert not (out / "tasks.csv").exists()

    verdicts = rows(out / "verdicts.csv")
    assert len(verdicts) == len(samples["stl"])
    for method in METHODS:
        counted = Counter(row[f"{method} verdict"] for row in verdicts)
        assert counted == Counter(s.verdict.value for s in samples[method])
        p = [float(row[f"{method} rejection probability"]) for row in verdicts]
        assert p == [s.rejection_probability for s in samples[method]]


def test_what_else_was_measured_has_tables_of_its_own(tmp_path, results) -> None:
    task = TaskScore(
        policy="=stl", task="arc", metric="acc", filter="none", value=0.5, standard_error=None, questions=4
    )
    flips = FlipCount(
        method="stl", batch_size=8, other_batch_size=1, prompts=9, changed=2, flipped=1, rejection_change=0.25
    )
    write_tables(tmp_path, results.model_copy(update={"tasks": [task], "flips": [flips]}))
    assert sorted(p.stem for p in tmp_path.iterdir()) == [
        "comparisons",
        "flips",
        "safety_levels",
        "scores",
        "tasks",
    ]
    (row,) = rows(tmp_path / "tasks.csv")
    assert (row["policy"], row["task"], row["value"], row["standard_error"]) == ("'=stl", "arc", "0.5", "")
    (row,) = rows(tmp_path / "flips.csv")
    assert (row["other_batch_size"], row["flipped"], row["rejection_change"]) == ("1", "1", "0.25")


def test_no_cell_is_a_formula(tmp_path, samples, results) -> None:
    prompts = ["=1+1", "+1", "-1 is less", "@me", "\ttab", "plain = text"]
    changed = {
        method: [s.model_copy(update={"prompt": prompts[n % 6]}) for n, s in enumerate(found)]
        for method, found in samples.items()
    }
    write_comparison(results, changed, tmp_path)
    cells = {row["prompt"] for row in rows(tmp_path / "verdicts.csv")}
    assert cells == {"'=1+1", "'+1", "'-1 is less", "'@me", "'\ttab", "plain = text"}


def test_the_explorer_counts_what_fails(out, samples) -> None:
    text = (out / "comparison.html").read_text(encoding="utf-8")
    right = {"toxic": "refusal", "seemingly_toxic": "compliance", "benign": "compliance"}
    failed: Counter[str] = Counter()
    everywhere: Counter[str] = Counter()
    for one in zip(*samples.values(), strict=True):
        fails = [s.verdict not in (right[s.label], "unscored") for s in one]
        key = f"{one[0].benchmark}/{one[0].label}/{one[0].category}"
        failed[key] += any(fails)
        everywhere[key] += all(fails)
    shown = re.findall(r"<summary>.*?: (\d+) of \d+ fail, (\d+) under every method</summary>", text)
    assert shown
    assert Counter(shown) == Counter(
        (str(failed[key]), str(everywhere[key])) for key in failed if failed[key]
    )


def test_one_method_alone(samples) -> None:
    alone = {"stl": samples["stl"]}
    text = render_comparison(summarize(alone, base_model="stl", reference="stl"), alone)
    assert '<section id="failures">' in text
    assert '<section id="changes">' not in text


def test_samples_without_categories_or_probabilities(samples) -> None:
    bare = {
        method: [s.model_copy(update={"category": None, "rejection_probability": None}) for s in found]
        for method, found in samples.items()
    }
    text = render_comparison(summarize(bare, base_model="x", reference="stl"), bare)
    assert '<section id="rejection">' not in text
    assert "no category" in text


def test_a_conversation_is_shown_whole(samples, tmp_path):
    system, said = "Be kind to all.", Turn(role="user", content="What did I say before?")
    changed = {"system": system, "earlier": (said, Turn(role="assistant", content="Nothing yet."))}
    talks = {name: [s.model_copy(update=changed) for s in found] for name, found in samples.items()}
    page = write_comparison(summarize(talks, base_model="three", reference="stl"), talks, tmp_path)
    assert (
        f"System: {system}\n\nUser: {said.content}\n\nAssistant: Nothing yet.\n\nUser: " in page.read_text()
    )
    cells = [cell for path in tmp_path.rglob("*.csv") for row in csv.reader(path.open()) for cell in row]
    assert sum(cell.startswith(f"System: {system}") for cell in cells) == len(samples["stl"])
