"""The tables of README and of the studies are what the published numbers make."""

from pathlib import Path

import pytest

from discernment.evaluation.over_seeds import SeedResults
from discernment.files import read_json
from discernment.reporting.tables.seeds_markdown import seeds_markdown
from discernment.reporting.text import MINUS

ROOT = Path(__file__).parents[1]
SETS = ("OR-Bench hard", "OKTest", "CoCoNot contrast", "all")
LEVELS = (80, 90, 95)
IN_WORDS = {"all": "all benchmarks"}
PLACES = (
    {f"{name}, AUROC": ("Discernment AUROC", f"{IN_WORDS.get(name, name)}, seemingly toxic") for name in SETS}
    | {
        f"all, answered where {level} % are refused, %": (
            "Answered at fixed levels of safety, %",
            f"all benchmarks, seemingly toxic, {level} % refused",
        )
        for level in LEVELS
    }
    | {
        words: ("Rightly handled (toxic refused, others answered), %", f"all benchmarks, {label}")
        for words, label in (
            ("toxic refused, by verdict, %", "toxic"),
            ("seemingly toxic answered, by verdict, %", "seemingly toxic"),
        )
    }
)
"""Each row of README's table: where its numbers stand in the tables of the run."""


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables_of(numbers):
    """Every cell of the tables that the run's numbers make, by heading, place and column."""
    found, heading, columns = {}, "", []
    for line in seeds_markdown(SeedResults.model_validate(read_json(numbers))).splitlines():
        if line.startswith("## "):
            heading, columns = line.removeprefix("## "), []
        elif line.startswith("|") and not columns:
            columns = cells(line)
        elif line.startswith("|"):
            place, *values = cells(line)
            found |= {(heading, place, column): v for column, v in zip(columns[1:], values, strict=True)}
    return found


def test_each_number_of_the_first_table_is_that_of_the_study():
    study = ROOT / "docs" / "study" / "fresh"
    known = tables_of(study / "seeds.json") | tables_of(study / "against-stl_aug.json")
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith("| | `stl` | `stl_aug` | `dcr` |"))
    columns = cells(lines[begin])
    assert columns[4:] == [f"`dcr` {MINUS} `stl`", f"`dcr` {MINUS} `stl_aug`"]
    rows = {cells(line)[0]: cells(line)[1:] for line in lines[begin + 2 : begin + 2 + len(PLACES)]}
    for words, place in PLACES.items():
        assert rows[words] == [known[*place, column] for column in columns[1:]], words


QUANTITIES = {  # of the rows of docs/study.md: the quantity, and the label that it is about
    "AUROC": ("auroc", "seemingly_toxic"),
    "answered where 80 % are refused, %": (0.8, "seemingly_toxic"),
    "answered where 90 % are refused, %": (0.9, "seemingly_toxic"),
    "answered where 95 % are refused, %": (0.95, "seemingly_toxic"),
    "answered by verdict, %": ("rate", "seemingly_toxic"),
    "refused by verdict, %": ("rate", "toxic"),
    "toxic refused, by verdict, %": ("rate", "toxic"),
    "seemingly toxic answered, by verdict, %": ("rate", "seemingly_toxic"),
}


def found_rows(*numbers):
    """Every comparison against the reference, by quantity (or level of safety), place, label and pair of methods."""
    found = {}
    for file in numbers:
        content = read_json(file)
        for row in (*content["comparisons"], *content["safety_levels"]):
            if row["quantity"] == "rate" or row["toxic"] == "all":
                quantity = row["level"] if row["quantity"] == "safety_level" else row["quantity"]
                place = (quantity, row["benchmark"], row["label"])
                found[*place, row["method"], row["against"]] = row
                reverse = {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
                turned = {"values": row["values_against"], "values_against": row["values"]}
                found[*place, row["against"], row["method"]] = row | reverse | turned
    return found


def written(row, quantity):
    """A difference with its interval, as the page has it."""
    points = quantity != "auroc"

    def signed(value):
        said = f"{100 * value + 0.0:+.1f}" if points else f"{value:+.3f}".replace("0.", ".", 1)
        return said.replace("-", MINUS)

    mark = "**" if row["low"] > 0 or row["high"] < 0 else ""
    return f"{mark}{signed(row['difference'])}{mark} ({signed(row['low'])} to {signed(row['high'])})"


def table_below(page, heading):
    """The first table below a heading: its columns, and its rows by their first cell."""
    lines = page.read_text("utf-8").splitlines()
    begin = lines.index(f"## {heading}")
    first = next(n for n in range(begin, len(lines)) if lines[n].startswith("| |"))
    last = next(n for n in range(first, len(lines)) if not lines[n].startswith("|"))
    return cells(lines[first])[1:], {cells(line)[0]: cells(line)[1:] for line in lines[first + 2 : last]}


@pytest.mark.parametrize(
    ("heading", "files"),
    [
        ("Fresh seeds, and options chosen on sources left out", "fresh/seeds fresh/against-stl_aug"),
        ("A model that refuses too much already", "mend/seeds mend/against-stl_aug"),
        ("The same as replies", "mend/seeds mend/against-calibrated_stl mend/against-calibrated_stl_aug"),
        ("Is it only more labelled prompts?", "control/seeds"),
        ("On a second model", "gemma/seeds gemma/against-stl_aug"),
    ],
)
def test_each_number_of_a_study_is_that_of_its_file(heading, files):
    docs = ROOT / "docs"
    known = found_rows(*(docs / "study" / f"{name}.json" for name in files.split()))
    columns, rows = table_below(docs / "study.md", heading)
    checked = 0
    for words, values in rows.items():
        begin, _, end = words.partition(", ")
        place, what = (begin, end) if end in QUANTITIES else ("all", words)
        if what not in QUANTITIES:  # equal safety, which README's test and the report have
            continue
        quantity, label = QUANTITIES[what]
        for column, cell in zip(columns, values, strict=True):
            names = [name.strip("`") for name in column.split(f" {MINUS} ")]
            if len(names) == 2:
                assert cell == written(known[quantity, place, label, *names], quantity), (words, column)
            else:
                alike = [
                    r["values"]
                    for (*at, m, _), r in known.items()
                    if (*at, m) == (quantity, place, label, *names)
                ]
                # With another method other prompts are left out, those that either has no verdict on.
                said = [
                    ", ".join(f"{v:.2f}" if quantity == "auroc" else f"{100 * v:.0f}" for v in of)
                    for of in alike
                ]
                assert cell in said, (words, column)
            checked += 1
    assert checked >= 9 * len(columns)
