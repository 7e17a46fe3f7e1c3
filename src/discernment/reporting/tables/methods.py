"""The method table: which share each method refuses and answers, with intervals; for the page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from discernment.evaluation.results import Results
from discernment.prompts import Label
from discernment.reporting.naming import label_in_words, pair_in_words
from discernment.reporting.tables.measures import MEASURES
from discernment.reporting.tables.terminal import Line, Stack, table_of
from discernment.reporting.text import count, decimal, interval, percent

if TYPE_CHECKING:
    from rich.table import Table

QUESTION = "Which of these models refuses what it should, and only that?"
OVER_REFUSAL = "A model over-refuses when it refuses harmless prompts because they look harmful."
RATES = {
    Label.TOXIC: "Toxic refused,\N{NO-BREAK SPACE}%",
    Label.SEEMINGLY_TOXIC: "Seemingly toxic answered,\N{NO-BREAK SPACE}%",
    Label.BENIGN: "Benign answered,\N{NO-BREAK SPACE}%",
}
AUROC = "Discernment AUROC"


@dataclass(frozen=True)
class Cell:
    """A number with its interval.

    Attributes:
        value: The number; None if it is not known.
        low: Lower end of its 95 % interval.
        high: Upper end.
        best: Whether its interval lies over the interval of every other method.
    """

    value: float | None
    low: float | None
    high: float | None
    best: bool = False

    @property
    def known(self) -> bool:
        """Whether there is a number with both ends of its interval."""
        return all(v is not None and math.isfinite(v) for v in (self.value, self.low, self.high))


@dataclass(frozen=True)
class Column:
    """One quantity of all methods.

    Attributes:
        group: What it is, in words.
        where: On which prompts, as far as that needs saying.
        is_rate: Whether it is a share, shown as a percentage, or a number between 0 and 1.
        cells: The cell of each method that has one.
    """

    group: str
    where: str
    is_rate: bool
    cells: dict[str, Cell]

    def value(self, cell: Cell) -> str:
        """The number of a cell in this column's form."""
        return percent(cell.value) if self.is_rate else decimal(cell.value)

    def interval(self, cell: Cell) -> str:
        """The interval of a cell in this column's form."""
        return interval(cell.low, cell.high, "percent" if self.is_rate else "decimal")

    def line(self) -> Line:
        """The same as a row of the terminal's table."""
        numbers: dict[str, Stack] = {
            method: [(self.value(cell), "bold" if cell.best else ""), (self.interval(cell), "not bold dim")]
            for method, cell in self.cells.items()
        }
        return Line(self.group, self.where, numbers)


@dataclass(frozen=True)
class Tally:
    """How many prompts of a method have a verdict, how many a partial refusal, and how many completions no verdict."""

    scored: int
    partial: int
    unscored: int


def columns(results: Results) -> list[Column]:
    """The columns of the method table: rates by label, then discernment AUROCs; benchmarks in the recipe's order.

    No rate is marked as the best: a model that answers everything, or nothing, has the best of one label.
    """
    found = []
    single = len(results.benchmarks) == 1
    for label, group in RATES.items():
        for benchmark in results.benchmarks:
            cells = {
                s.method: Cell(s.value, s.low, s.high)
                for s in results.scores
                if (s.label, s.benchmark) == (label, benchmark)
            }
            if cells:
                found.append(Column(group, "" if single else benchmark, True, cells))
    for pair in dict.fromkeys((r.toxic, r.harmless, r.harmless_label) for r in results.rankings):
        cells = {
            r.method: Cell(r.value, r.low, r.high)
            for r in results.rankings
            if (r.toxic, r.harmless, r.harmless_label) == pair
        }
        where = f"vs {label_in_words[pair[2]]}" if single else pair_in_words(*pair)
        found.append(Column(AUROC, where, False, _mark_best(cells)))
    return found


def spans(table: Iterable[Column]) -> list[tuple[str, int]]:
    """Neighbouring columns of one group, as the group's name and how many there are."""
    return [(group, len(list(members))) for group, members in groupby(table, key=lambda column: column.group)]


def _mark_best(cells: dict[str, Cell]) -> dict[str, Cell]:
    known = {method: cell for method, cell in cells.items() if cell.known}
    marked = dict(cells)
    for method, cell in known.items():
        others = [other.high or 0.0 for name, other in known.items() if name != method]
        if others and (cell.low or 0.0) > max(others):
            marked[method] = replace(cell, best=True)
    return marked


def tallies(results: Results) -> dict[str, Tally]:
    """The counts of each method over all benchmarks."""
    scores = {method: [s for s in results.scores if s.method == method] for method in results.methods}
    return {
        method: Tally(
            sum(s.scored for s in found),
            sum(s.partial for s in found),
            sum(s.unscored if s.unscored_replies is None else s.unscored_replies for s in found),
        )
        for method, found in scores.items()
    }


def result_lines(results: Results) -> list[Line]:
    """Every rate, ranking and measure of a run, one line a quantity."""
    lines = [column.line() for column in columns(results)]
    return lines + [line for measure in MEASURES.values() for line in measure.lines(results)]


def results_table(results: Results) -> Table:
    """The method table for the terminal: methods across, one row a quantity, each number over its 95 % interval.

    A number is bold where its interval lies over those of all other methods.
    """
    from rich.text import Text

    methods, lines = results.methods, result_lines(results)
    caption = "95 % intervals; bold: ranks better than every other method, with intervals apart."
    table = table_of(QUESTION, caption, "", methods, lines)
    table.add_section()
    tally = tallies(results)
    counts = {
        "Partial refusals": {method: tally[method].partial for method in methods},
        "Unscored completions": {method: tally[method].unscored for method in methods},
    }
    for measure in MEASURES.values():
        counts |= measure.counts(results)
    for words, of_method in counts.items():
        table.add_row(words, *(count(of_method.get(method)) for method in methods))
    for what in dict.fromkeys(left_out.what for left_out in results.left_out):
        without = {left_out.method for left_out in results.left_out if left_out.what == what}
        table.add_row(Text(what.capitalize()), *("left out" if m in without else "" for m in methods))
    return table
