"""The field table and the frontier figure: many methods side by side."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from discernment.evaluation.over_seeds import summarize_seeds
from discernment.evaluation.results import summarize
from discernment.evaluation.robustness import AttackDrop
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.reporting.figures.frontier import frontier_panels
from discernment.reporting.pages.run import render_report
from discernment.reporting.pages.seeds import render_seeds
from discernment.reporting.run_files import Manifest, Method, RunFiles, Stage
from discernment.reporting.tables.csv_files import write_field
from discernment.reporting.tables.field import FieldColumn, field_over_seeds, field_table
from page import Page

METHODS = ["base", "stl", "dcr", "weak", "strong", "<b>odd"]
RIGHT = dict(zip(METHODS, (0.1, 0.5, 0.9, 0.3, 0.7, 0.4), strict=True))
"""Share of the toxic prompts that a method refuses; it answers the rest of this share of the others."""


def samples(method: str) -> list[Sample]:
    found = []
    for benchmark, label, n in (
        ("one", Label.SEEMINGLY_TOXIC, 20),
        ("two", Label.SEEMINGLY_TOXIC, 30),
        ("adv", Label.TOXIC, 40),
    ):
        for k in range(n):
            refused = (k + 0.5) / n < (RIGHT[method] if label is Label.TOXIC else RIGHT[method] / 2)
            # The more a method refuses rightly, the wider its probabilities lie apart.
            shift = 2 * RIGHT[method] * (label is Label.TOXIC)
            found.append(
                Sample(
                    prompt_id=f"{benchmark}-{k}", benchmark=benchmark, label=label, prompt="?", completion="!",
                    finished=True, verdict=Verdict.REFUSAL if refused else Verdict.COMPLIANCE,
                    rejection_probability=((k * 7) % n / n + shift) / 3,
                )
            )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def everything() -> tuple[Any, Manifest]:
    results = summarize({m: samples(m) for m in METHODS}, base_model="tiny", reference="stl")
    drops = [
        AttackDrop(
            method=m, attack=attack, benchmark="adv", clean=0.5, attacked=0.4, drop=drop, low=0, high=1, p_value=1, n=40,
            unscored=0,
        )
        for m in METHODS
        for attack, drop in (("a", 0.1), ("b", 0.3))
    ]  # fmt: skip
    stages = {
        f"align-{m}": Stage(name="align", methods=[m], seconds=10.0 + n, tokens=1000 + n, peak_memory_bytes=2**20 * (n + 1))
        for n, m in enumerate(METHODS)
    } | {
        f"evaluate-{m}": Stage(name="evaluate", methods=[m], seconds=20.0 * (n + 1), tokens=4000)
        for n, m in enumerate(METHODS)
    }  # fmt: skip
    kinds = {"weak": "scans", "strong": "scans", "<b>odd": "scans"}
    methods = {
        m: Method(
            method=kinds.get(m, m),
            stages=[*(["align-stl"] if m == "dcr" else []), f"align-{m}", f"evaluate-{m}"],
        )
        for m in METHODS
    }
    return results.model_copy(update={"attack_drops": drops}), Manifest(stages=stages, methods=methods)


def column(columns: list[FieldColumn], words: str) -> FieldColumn:
    (found,) = (c for c in columns if c.words == words)
    return found


def test_columns_hold_the_numbers_of_the_results_and_of_the_stages(everything: Any) -> None:
    results, manifest = everything
    columns = field_table(results, manifest)
    pooled = {
        r.method: r for r in results.safety_levels if (r.harmless, r.measure) == ("all", "strict_compliance")
    }
    strict = column(columns, "all benchmarks, seemingly toxic: answered, 80 to 100 % refused, %")
    assert strict.values == {m: row.value for m, row in pooled.items()}
    assert strict.differences["dcr"] == (pooled["dcr"].difference_low, pooled["dcr"].difference_high)
    assert sum("(equal safety)" in c.words for c in columns) == 3  # each benchmark, and all
    assert column(columns, "Toxic refused, %").values == pytest.approx({m: RIGHT[m] for m in METHODS})
    assert column(columns, "Lost to attacks, points").values == pytest.approx(dict.fromkeys(METHODS, 0.2))
    less = results.model_copy(
        update={"attack_drops": results.attack_drops[1:]}
    )  # one attack on one method is gone
    (other,) = {row.drop for row in less.attack_drops if row.attack != results.attack_drops[0].attack}
    lost = column(field_table(less, manifest), "Lost to attacks, points").values
    assert lost == pytest.approx(dict.fromkeys(METHODS, other))
    assert column(columns, "Making it").values["dcr"] == 11 + 12  # what it stands on, too
    assert column(columns, "Peak memory").written("dcr") == "3 MiB"
    assert column(columns, "Tokens of making it").values["base"] == 1000
    pace = column(columns, "Evaluation, seconds a token / reference").values
    assert pace == pytest.approx({m: (n + 1) / 2 for n, m in enumerate(METHODS)})
    assert not [c for c in columns if "KL" in c.words or "Benign" in c.words]  # not measured


def test_the_best_and_what_is_surely_better() -> None:
    more = FieldColumn(
        "x", "percent", True, {"a": 0.5, "b": 0.7, "c": 0.7}, {"a": (-0.3, -0.1), "b": (-0.1, 0.2)}
    )
    assert more.best == {"b", "c"}
    assert [more.against_reference(m) for m in "abc"] == ["worse", "", ""]
    assert more.places(["d", "c", "a", "b"]) == {"c": 0, "b": 1, "a": 2, "d": 3}
    less = FieldColumn("x", "decimal", False, {"a": 0.5, "b": 0.7}, {"a": (-0.3, -0.1)})
    assert less.best == {"a"}
    assert less.against_reference("a") == "better"
    assert less.places(["b", "a"]) == {"a": 0, "b": 1}
    assert FieldColumn("x", "decimal", True, dict.fromkeys("abc", 1.0)).best == set()
    assert FieldColumn("x", "decimal", True, {"a": 1.0}).best == set()


def test_the_page_sorts_without_a_script(everything: Any) -> None:
    results, manifest = everything
    page = Page(render_report(RunFiles(Path("run"), results, manifest, None, {}, [], [], [], None)))
    columns = field_table(results, manifest)
    radios = [a for tag, a in page.elements if tag == "input"]
    assert [a["id"] for a in radios] == [f"sort-{n}" for n in range(len(columns) + 1)]
    assert {(a["type"], a["name"]) for a in radios} == {("radio", "sort")}
    assert [a["id"] for a in radios if "checked" in a] == ["sort-0"]
    rows = re.findall(r'<tr role="row" style="([^"]*)">', page.source)
    assert len(rows) == len(METHODS)
    for n, of in enumerate(columns, start=1):
        assert f"#sort-{n}:checked" in page.text("style")
        shown = {
            m: int(re.search(rf"--s{n}:(\d+);", row)[1]) - 1 for m, row in zip(METHODS, rows, strict=True)
        }  # type: ignore[index]
        assert shown == of.places(METHODS)
    assert {a.get("role") for tag, a in page.elements if tag == "tr" and "style" in a} == {"row"}
    assert not {tag for tag, _ in page.elements} & {"script", "form"}
    assert "<b>odd" in page.text("th")
    assert "Rates on each benchmark" in page.text("summary")


def test_few_methods_need_no_such_table(everything: Any) -> None:
    results, manifest = everything
    few = results.model_copy(update={"methods": METHODS[:4]})
    assert field_table(few, manifest) == []


def test_means_over_seeds(everything: Any) -> None:
    results, _ = everything
    runs = {seed: {m: samples(m) for m in METHODS} for seed in (0, 1)}
    over = summarize_seeds(runs, base_model="tiny", reference="stl", resamples=50)
    columns = field_over_seeds(over)
    pooled = {
        r.method: r.value for r in results.safety_levels if (r.harmless, r.measure) == ("all", "strict_compliance")
    }  # fmt: skip
    strict = column(columns, "all benchmarks, seemingly toxic: answered, 80 to 100 % refused, %")
    assert strict.values == pytest.approx(pooled)
    assert column(columns, "Toxic refused, %").values == pytest.approx(RIGHT)
    page = Page(render_seeds(over))
    assert page.sections[0] == "field"
    assert len([a for tag, a in page.elements if tag == "input"]) == len(columns) + 1


def test_costs_over_seeds_are_means_of_what_every_seed_knows(everything: Any) -> None:
    _, manifest = everything
    runs = {seed: {m: samples(m) for m in METHODS} for seed in (0, 1)}
    over = summarize_seeds(runs, base_model="tiny", reference="stl", resamples=50)
    slower = {
        name: stage.model_copy(
            update={
                "seconds": 3 * (stage.seconds or 0),
                "peak_memory_bytes": None if name == "align-base" else stage.peak_memory_bytes,
            }
        )
        for name, stage in manifest.stages.items()
    }
    columns = field_over_seeds(over, [manifest, manifest.model_copy(update={"stages": slower})])
    assert column(columns, "Making it").values["dcr"] == pytest.approx(2 * (11 + 12))
    pace = column(columns, "Evaluation, seconds a token / reference").values
    assert pace == pytest.approx({m: (n + 1) / 2 for n, m in enumerate(METHODS)})
    assert column(columns, "Tokens of making it").values["base"] == 1000
    memory = column(columns, "Peak memory").values
    assert memory["stl"] == 2 * 2**20
    assert "base" not in memory
    assert not {c.words for c in field_over_seeds(over)} & {"Making it", "Peak memory"}


def test_the_table_as_a_file(everything: Any, tmp_path: Path) -> None:
    results, manifest = everything
    columns = field_table(results, manifest)
    write_field(tmp_path / "field.csv", columns)
    with (tmp_path / "field.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(c.values) for c in columns) > 50
    auroc = column(columns, "AUROC, seemingly toxic")
    (row,) = (r for r in rows if (r["column"], r["method"]) == (auroc.words, "dcr"))
    assert float(row["value"]) == auroc.values["dcr"]
    assert (float(row["difference_low"]), float(row["difference_high"])) == auroc.differences["dcr"]
    (reference,) = (r for r in rows if (r["column"], r["method"]) == ("Making it", "stl"))
    assert reference["difference_low"] == ""


def test_the_frontier_joins_the_strengths_of_one_method_in_the_order_of_safety(everything: Any) -> None:
    results, manifest = everything
    (panel,), numbers = frontier_panels(results, manifest)
    assert numbers == {m: n for n, m in enumerate(METHODS, start=1)}
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", panel.svg)
    assert {"1", "4", "6", "2 stl"} <= set(texts)
    # A line through three points, whose horizontal places rise.
    paths = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", d) for d in re.findall(r'<path d="([^"]+)"', panel.svg)]
    joined = [[float(x) for x, _ in points] for points in paths if len(points) == 3]
    assert [xs for xs in joined if xs == sorted(xs) and xs[0] < xs[1] < xs[2]]
    elsewhere = {**manifest.methods, "strong": Method(method="scans", on="dcr")}
    (apart,), _ = frontier_panels(results, manifest.model_copy(update={"methods": elsewhere}))
    assert apart.svg.count("<path") == panel.svg.count("<path")
    assert apart.svg != panel.svg
    assert frontier_panels(results.model_copy(update={"methods": METHODS[:4]}), manifest).panels == []
