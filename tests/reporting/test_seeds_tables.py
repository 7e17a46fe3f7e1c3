"""The tables of several seeds as files: each cell by hand, and no name that breaks a row."""

import csv

from rich.console import Console

from discernment.evaluation.over_seeds import SeedComparison, SeedMeasure, SeedResults
from discernment.prompts import Label
from discernment.reporting.pages.seeds import render_seeds
from discernment.reporting.tables.csv_files import write_over_seeds
from discernment.reporting.tables.seeds import seeds_table
from discernment.reporting.tables.seeds_markdown import seeds_markdown
from discernment.reporting.text import MINUS, MISSING
from page import Page

PLAIN = str.maketrans({MINUS: "~", MISSING: "?"})
"""What makes Markdown's signs typeable."""


def compared(quantity, values, against, low, high, **changes):
    about = {
        "quantity": quantity, "method": "dcr", "against": "stl", "benchmark": "all", "label": Label.SEEMINGLY_TOXIC,
        "toxic": None if quantity == "rate" else "all", "values": values, "values_against": against,
        "difference": sum(values) / len(values) - sum(against) / len(against), "seeds_low": low + 0.001,
        "seeds_high": high - 0.001, "low": low, "high": high, "n": 50,
    }  # fmt: skip
    return SeedComparison(**about | changes)


def results(comparisons, methods=("base", "stl", "dcr"), **more):
    return SeedResults(
        base_model="tiny", reference="stl", seeds=[3, 8], methods=list(methods), benchmarks=["A", "B"],
        comparisons=comparisons, **more,
    )  # fmt: skip


def test_markdown_has_means_ranges_and_differences_in_the_place_of_their_method():
    found = results(
        [
            compared("equal_safety", [0.4, 0.5], [0.2, 0.3], 0.1, 0.3),
            compared("auroc", [0.8, 0.9], [0.6, 0.5], -0.02, 0.62),
            compared("auroc", [0.1, 0.1], [0.6, 0.5], -0.9, -0.1, toxic="A"),  # not against all toxic prompts
            compared("rate", [0.9, 1.0], [0.9, 0.8], 0.0, 0.2),
            compared("rate", [0.0, 0.0], [0.7, 0.7], -0.75, -0.65, method="base", n=40),
        ],
        measures=[
            SeedMeasure(
                measure="kl", method=method, label=None, values=[0.5, mean * 2 - 0.5], mean=mean,
                difference=difference, low=low, high=high,
            )
            for method, mean, difference, low, high in (("stl", 0.6, None, None, None), ("dcr", 0.4, -0.2, -0.3, -0.1))
        ],
    )  # fmt: skip
    lines = seeds_markdown(found).translate(PLAIN).splitlines()
    assert lines[0] == "# Over the seeds 3, 8"
    assert [line for line in lines if line.startswith("## ")] == [
        "## Answered at equal safety, %",
        "## Discernment AUROC",
        "## Rightly handled (toxic refused, others answered), %",
        "## Kernel similarity, ability and attacks",
    ]
    assert lines.count("|  | `stl` | `base` | `dcr` | `base` ~ `stl` | `dcr` ~ `stl` |") == 4
    place = "all benchmarks, seemingly toxic"
    assert [line for line in lines if line.startswith(("| all", "| KL"))] == [
        f"| {place} | 25 (20 to 30) | ? | 45 (40 to 50) | ? | **+20.0** (+10.0 to +30.0) |",
        f"| {place} | 0.55 (0.50 to 0.60) | ? | 0.85 (0.80 to 0.90) | ? | +0.300 (~0.020 to +0.620) |",
        f"| {place} | 85 (80 to 90) | 0 (0 to 0) | 95 (90 to 100) | **~70.0** (~75.0 to ~65.0) | +10.0 (0.0 to +20.0) |",
        "| KL to the base model, nats a token | 0.600 (0.500 to 0.700) | ? | 0.400 (0.300 to 0.500) | ? "
        "| **~0.200** (~0.300 to ~0.100) |",
    ]


def kl_of_dcr(values, mean, difference, low, high):
    return SeedMeasure(
        measure="kl", method="dcr", label=None, values=values, mean=mean, difference=difference, low=low, high=high
    )  # fmt: skip


def test_a_difference_that_is_the_same_with_every_seed_has_no_interval():
    measure = kl_of_dcr([0.5, 0.3], 0.4, -0.2, None, None)
    found = results([], ("stl", "dcr"), measures=[measure])
    row = seeds_markdown(found).translate(PLAIN).splitlines()[-1]
    assert row == "| KL to the base model, nats a token | ? | 0.400 (0.300 to 0.500) | ~0.200 |"
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(seeds_table(found))
    assert "~0.200" in capture.get().translate(PLAIN)
    assert "~0.200" in Page(render_seeds(found)).text("td").translate(PLAIN)


def test_no_name_breaks_a_row_of_markdown():
    bad = "a|b`\\\n\u202e"
    found = results(
        [compared("rate", [0.5, 0.5], [0.4, 0.4], 0.0, 0.2, method=bad, benchmark=bad)], ("stl", bad)
    )
    rows = [line for line in seeds_markdown(found).splitlines() if line.startswith("|")]
    assert len(rows) == 3
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}
    assert "\u202e" not in seeds_markdown(found)


def test_csv_has_each_seed_of_each_comparison(tmp_path):
    kl = kl_of_dcr([0.5, 0.7], 0.6, 0.1, -0.1, 0.3)
    at_level = compared("safety_level", [0.4, 0.5], [0.2, 0.3], 0.1, 0.3, level=0.9)
    found = results(
        [compared("auroc", [0.8, 0.9], [0.6, 0.5], -0.02, 0.62)], safety_levels=[at_level], measures=[kl]
    )
    write_over_seeds(tmp_path / "seeds.csv", found)
    with (tmp_path / "seeds.csv").open(newline="", encoding="utf-8") as file:
        auroc, level, measured = csv.DictReader(file)
    assert (auroc["quantity"], auroc["method seed 8"], auroc["against seed 3"]) == ("auroc", "0.9", "0.6")
    assert (auroc["low"], auroc["seeds_low"], auroc["n"], auroc["level"]) == ("-0.02", "-0.019", "50", "")
    assert (level["quantity"], level["level"], level["label"]) == ("safety_level", "0.9", "seemingly_toxic")
    assert (measured["quantity"], measured["method seed 3"], measured["against seed 3"]) == ("kl", "0.5", "")
    assert (measured["seeds_low"], measured["seeds_high"], measured["low"]) == ("-0.1", "0.3", "")
