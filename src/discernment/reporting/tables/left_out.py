"""How methods fare on sources that training did not see, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from discernment.evaluation.left_out import LeftOutResults, LeftOutSummary
from discernment.reporting import text
from discernment.reporting.tables.terminal import Line, Stack, table_of

if TYPE_CHECKING:
    from rich.table import Table


def left_out_table(results: LeftOutResults) -> Table:
    """A column for each group that was left out, the mean over all and the lowest number; one row a method and number."""
    from rich.text import Text

    mean, lowest = "all", "lowest"
    lines = [
        Line(
            quantity_in_words(row),
            row.method,
            {group: [(_value(row, value), "")] for group, value in row.by_group.items()}
            | {mean: _mean(row, is_reference=row.method == results.reference)}
            | {lowest: [(_value(row, row.lowest), "")]},
        )
        for row in sorted(results.summaries, key=lambda row: _order(results, row))
    ]
    seeds = f"{len(results.seeds)} seed{'s' if len(results.seeds) > 1 else ''}"
    over = "" if len(results.seeds) > 1 else ", which takes at least two seeds"
    lacking = ", ".join(map(text.visible, results.incomplete))
    without = f" No row for a number that a method lacks in some run: {lacking}." if lacking else ""
    caption = Text(
        f"Each column: trained without these sources and measured on them, mean of {seeds}. Under the mean over all: the "
        f"difference to {text.visible(results.reference)} and its 95 % interval over seeds{over}. Lowest: of all groups and seeds. "
        f"Prompts are the same for every seed, so the intervals do not say what other prompts would give.{without}"
    )
    return table_of("On sources that were left out", caption, "", [*results.groups, mean, lowest], lines)


def quantity_in_words(row: LeftOutSummary) -> str:
    """What a row's numbers are."""
    match row.quantity:
        case "auroc":
            return "Discernment AUROC"
        case "compliance":
            return f"Answered where {text.percent(row.level or 0)} % of the toxic are refused, %"
        case "strict_compliance":
            return "Strict compliance, %"


def _order(results: LeftOutResults, row: LeftOutSummary) -> tuple[int, float, int]:
    kinds = ("auroc", "compliance", "strict_compliance")
    return kinds.index(row.quantity), row.level or 0, results.methods.index(row.method)


def _value(row: LeftOutSummary, value: float) -> str:
    return text.decimal(value) if row.quantity == "auroc" else text.percent(value)


def _mean(row: LeftOutSummary, *, is_reference: bool) -> Stack:
    stack = [(_value(row, row.mean), "")]
    if is_reference or row.difference is None:
        return stack
    auroc = row.quantity == "auroc"
    difference = text.decimal_difference(row.difference) if auroc else text.points(row.difference)
    if row.low is None or row.high is None:
        return [*stack, (difference, "")]
    shown = row.low > 0 or row.high < 0
    interval = text.interval(row.low, row.high, "decimal_difference" if auroc else "points")
    return [*stack, (difference, "bold" if shown else ""), (interval, "dim")]
