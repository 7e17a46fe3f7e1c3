"""The kernel similarity of groups of prompts in a diagnosis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from discernment.diagnosis.diagnosis import Diagnosis
from discernment.reporting.naming import label_in_words
from discernment.reporting.tables.terminal import Line, Stack, table_of
from discernment.reporting.text import decimal, interval

if TYPE_CHECKING:
    from rich.table import Table


def similarity_table(diagnosis: Diagnosis) -> Table:
    """The row-normalised similarity of the groups for the terminal, each mean over its 95 % interval."""
    lines: dict[str, dict[str, Stack]] = {}
    for pair in diagnosis.groups:
        ends = interval(pair.low, pair.high, "decimal")
        line = lines.setdefault(label_in_words[pair.row], {})
        line[label_in_words[pair.column]] = [(decimal(pair.mean), ""), (ends, "dim")]
    return table_of(
        "Kernel similarity: prompts that are moved, by steps on",
        "Row-normalised; 95 % intervals over prompts.",
        "moved",
        list(lines),
        [Line("", label, numbers) for label, numbers in lines.items()],
    )
