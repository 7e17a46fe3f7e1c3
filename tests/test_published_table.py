"""README's first table is what the published numbers of the study make."""

from pathlib import Path

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
