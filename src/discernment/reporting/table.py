"""The method table: which share each method refuses and answers, with intervals; for the page and the terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from discernment.evaluation.results import Results, TaskScore
from discernment.prompts import Label
from discernment.reporting.text import count, decimal, interval, percent, visible
from discernment.reporting.words import label_in_words, pair_in_words

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "Cell",
    "Column",
    "Tally",
    "TaskRow",
    "ability_columns",
    "columns",
    "results_table",
    "tallies",
    "task_rows",
]

RATES = {
    Label.TOXIC: "Toxic refused,\N{NO-BREAK SPACE}%",
    Label.SEEMINGLY_TOXIC: "Seemingly toxic answered,\N{NO-BREAK SPACE}%",
    Label.BENIGN: "Benign answered,\N{NO-BREAK SPACE}%",
}
AUROC = "Discernment AUROC"
ABILITY = "General ability"


@dataclass(frozen=True)
class Cell:
    """A number with its interval.

    Attributes:
        value: The number; None if it is not known.
        low: Lower end of its 95 % interval.
        high: Upper end.
        best: Whether its interval lies over the interval of every other method.
        n: Number of prompts behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    best: bool = False
    n: int = 0

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


@dataclass(frozen=True)
class Tally:
    """How many completions of a method were judged, and how many were only partial refusals or had no verdict."""

    scored: int
    partial: int
    unscored: int


@dataclass(frozen=True)
class TaskRow:
    """One metric of one task of lm-evaluation-harness.

    Attributes:
        name: The task, the metric and, where there is one, how answers were extracted.
        scores: What each method reached.
    """

    name: str
    scores: dict[str, TaskScore]

    @property
    def questions(self) -> int:
        """Number of questions."""
        return max(score.questions for score in self.scores.values())


def columns(results: Results) -> list[Column]:
    """The columns of the method table: rates by label, then discernment AUROCs; benchmarks in the recipe's order."""
    found = []
    single = len(results.benchmarks) == 1
    for label, group in RATES.items():
        for benchmark in results.benchmarks:
            cells = {
                s.method: Cell(s.value, s.low, s.high, n=s.scored)
                for s in results.scores
                if (s.label, s.benchmark) == (label, benchmark)
            }
            if cells:
                found.append(Column(group, "" if single else benchmark, True, _mark_best(cells)))
    for toxic, harmless, label in dict.fromkeys(
        (r.toxic, r.harmless, r.harmless_label) for r in results.rankings
    ):
        cells = {
            r.method: Cell(r.value, r.low, r.high, n=r.n_toxic + r.n_harmless)
            for r in results.rankings
            if (r.toxic, r.harmless, r.harmless_label) == (toxic, harmless, label)
        }
        where = f"vs {label_in_words[label]}" if single else pair_in_words(toxic, harmless, label)
        found.append(Column(AUROC, where, False, _mark_best(cells)))
    return found


def _mark_best(cells: dict[str, Cell]) -> dict[str, Cell]:
    known = {method: cell for method, cell in cells.items() if cell.known}
    marked = dict(cells)
    for method, cell in known.items():
        others = [other.high or 0.0 for name, other in known.items() if name != method]
        if others and (cell.low or 0.0) > max(others):
            marked[method] = Cell(cell.value, cell.low, cell.high, True, cell.n)
    return marked


def ability_columns(results: Results) -> list[Column]:
    """Divergence from the base model and perplexity of each method on given replies; none where not measured."""
    if not results.abilities:
        return []
    kl = {a.policy: Cell(a.kl, a.kl_low, a.kl_high, n=a.prompts) for a in results.abilities}
    ratio = {a.policy: Cell(a.ratio, a.ratio_low, a.ratio_high, n=a.prompts) for a in results.abilities}
    return [
        Column(ABILITY, "KL to the base model, nats (0: alike)", False, kl),
        Column(ABILITY, "Perplexity ratio to it (above 1: worse)", False, ratio),
    ]


def task_rows(results: Results) -> list[TaskRow]:
    """What each method reached in tasks of lm-evaluation-harness, one row a metric."""
    rows: dict[str, dict[str, TaskScore]] = {}
    for score in results.tasks:
        how = "" if score.filter == "none" else f" ({score.filter})"
        rows.setdefault(f"{score.task}, {score.metric}{how}", {})[score.policy] = score
    return [TaskRow(name, scores) for name, scores in rows.items()]


def tallies(results: Results) -> dict[str, Tally]:
    """The counts of each method over all benchmarks."""
    return {
        method: Tally(
            sum(s.scored for s in results.scores if s.method == method),
            sum(s.partial for s in results.scores if s.method == method),
            sum(s.unscored for s in results.scores if s.method == method),
        )
        for method in results.methods
    }


def results_table(results: Results) -> Table:
    """The method table for the terminal: methods across, one row a quantity, each number over its 95 % interval.

    A number is bold where its interval lies over those of all other methods.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title="Which of these models refuses what it should, and only that?",
        caption="95 % intervals; bold: better than every other method, with intervals apart.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", overflow="fold")
    for method in results.methods:
        table.add_column(Text(visible(method)), justify="right", overflow="fold")
    group = ""
    for column in [*columns(results), *ability_columns(results)]:
        if column.group != group:
            group = column.group
            table.add_section()
            if column.where:
                table.add_row(Text(group, style="bold"))
        label = Text(visible(column.where)) if column.where else Text(group, style="bold")
        numbers = []
        for method in results.methods:
            cell = column.cells.get(method, Cell(None, None, None))
            number = Text(column.value(cell), style="bold" if cell.best else "")
            number.append(f"\n{column.interval(cell)}", style="not bold dim")
            numbers.append(number)
        table.add_row(label, *numbers)
    if results.tasks:
        table.add_section()
        table.add_row(Text("Tasks, with standard errors", style="bold"))
    for row in task_rows(results):
        table.add_row(Text(visible(row.name)), *(_task_cell(row.scores.get(m)) for m in results.methods))
    table.add_section()
    tally = tallies(results)
    table.add_row("Partial refusals", *(count(tally[m].partial) for m in results.methods))
    table.add_row("Unscored completions", *(count(tally[m].unscored) for m in results.methods))
    flips = {flip.method: flip for flip in results.flips}
    if flips:
        changed = [flips[m].changed if m in flips else None for m in results.methods]
        flipped = [flips[m].flipped if m in flips else None for m in results.methods]
        table.add_row("Replies that change with the batches", *map(count, changed))
        table.add_row("Verdicts that change with the batches", *map(count, flipped))
    return table


def _task_cell(score: TaskScore | None) -> Text:
    from rich.text import Text

    cell = Text(decimal(score.value if score else None))
    if score is not None and score.standard_error is not None:
        cell.append(f"\n± {decimal(score.standard_error)}", style="dim")
    return cell
