import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from discernment.cli.console import plain_table
from discernment.reporting.tables.terminal import Line, fitted, tab_separated, table_of

METHODS = [
    "base",
    "stl",
    "dcr + self_cd",
    "prosafeprune",
    "fixed_rejection",
    "safe_patching",
    "think_first",
    "ablated",
]


def lines_of(table, width):
    console = Console(file=io.StringIO(), width=width)
    for part in fitted(table, width):
        console.print(part)
    return console.file.getvalue().splitlines()


def methods_table(names):
    numbers = {
        name: [(f"{50 + n}.0", "bold"), (f"{40 + n}.0 to {60 + n}.0", "dim")] for n, name in enumerate(names)
    }
    lines = [
        Line("Toxic refused, %", "pairs", numbers),
        Line("Toxic refused, %", "xstest", numbers),
        Line("Cost", "", numbers),
    ]
    return table_of("Which?", "95 % intervals.", "", names, lines)


@pytest.mark.parametrize("width", [60, 80, 300])
def test_names_of_methods_stay_whole_and_numbers_under_them(width):
    lines = lines_of(methods_table(METHODS), width)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert [text.count(name) for name in METHODS] == [1] * len(METHODS)
    assert (text.count("Which?"), text.count("95 % intervals.")) == (1, 1)
    parts = text.count("Cost")
    assert text.count("pairs") == text.count("xstest") == parts
    assert (parts == 1) == (width == 300)


def test_a_pipe_gets_the_group_in_every_row():
    assert tab_separated(methods_table(["a b", "c"])) == (
        "\ta b\tc\n"
        "Toxic refused, %: pairs\t50.0 40.0 to 60.0\t51.0 41.0 to 61.0\n"
        "Toxic refused, %: xstest\t50.0 40.0 to 60.0\t51.0 41.0 to 61.0\n"
        "Cost\t50.0 40.0 to 60.0\t51.0 41.0 to 61.0\n"
    )


def test_no_cell_holds_a_tab_or_a_line_of_its_own():
    table = plain_table(["id", "text"], [["a", "one\ttwo\nthree [bold]four[/bold]"]])
    header, row = tab_separated(table).splitlines()
    assert header == "id\ttext"
    assert row.startswith("a\tone")
    assert row.endswith("three [bold]four[/bold]")
    assert row.count("\t") == 1


CELLS = st.lists(st.text("abcé", min_size=1, max_size=12), max_size=6).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=8, max_size=8), min_size=1, max_size=3), st.integers(1, 8))
def test_no_word_is_broken_and_no_line_is_too_long(cells, columns):
    header = [f"column{n}" for n in range(columns)]
    rows = [row[:columns] for row in cells]
    lines = lines_of(plain_table(header, rows, whole=["column0"]), 100)
    assert max(map(cell_len, lines)) <= 100
    words = {word for row in [header, *rows] for cell in row[1:] for word in cell.split()}
    assert words <= {word for line in lines for word in line.split()}
