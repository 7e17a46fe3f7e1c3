"""Every reply of a run as a row of one table, as CSV for spreadsheets and as parquet for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from discernment.disk import room
from discernment.files import encodable
from discernment.reporting.exports.gathered import Gathered
from discernment.reporting.tables.csv_files import write_csv

COLUMNS = {
    "method": "The method.",
    "attack": "The attack that the prompt was sent under; empty where it was sent as it is.",
    "benchmark": "The benchmark.",
    "prompt_id": "The prompt's id in it.",
    "label": "toxic, seemingly_toxic or benign.",
    "category": "The prompt's category, where it has one.",
    "prompt": "What the user says last.",
    "system": "The prompt's own system message, where it has one.",
    "earlier": "The turns before it as JSON, where there are any.",
    "partner": "The id of the matched prompt, where there is one.",
    "frame": "The wording frame that it shares with others, where there is one.",
    "draw": "Which reply to the prompt, counted from 0.",
    "completion": "What the model generated.",
    "finished": "Whether it ended by itself, not at the token cap.",
    "verdict": "refusal, partial_refusal, compliance, or unscored where the judge could not tell.",
    "unscored_reason": "Why there is no verdict, where the judge says so.",
    "rejection_probability": "Probability mass of the refusal openings as the start of the reply; empty if not measured.",
}
"""The columns and what they hold."""
NUMBERS = {"draw": "int64", "finished": "bool", "rejection_probability": "double"}
"""Columns that are no text, with their types in parquet."""


def rows(gathered: Gathered) -> Iterator[dict[str, Any]]:
    """One row a reply, with a value for each of `COLUMNS`."""
    for replies in gathered.replies:
        for sample in replies.samples:
            earlier = [turn.model_dump(mode="json") for turn in sample.earlier]
            of_prompt = {
                "method": replies.method,
                "attack": replies.attack,
                "earlier": json.dumps(earlier, ensure_ascii=False) if earlier else None,
                **sample.model_dump(mode="json", exclude={"earlier", "further"}),
                "system": sample.system,
            }
            for draw, reply in enumerate(sample.replies):
                row = {**of_prompt, "draw": draw, **reply.model_dump(mode="json", include=_OF_REPLY)}
                yield {column: row[column] for column in COLUMNS}


_OF_REPLY = {"completion", "finished", "verdict", "unscored_reason"}


def write_samples_csv(gathered: Gathered, path: Path) -> None:
    """Write the table as CSV; control characters and formulas are made harmless, so that texts may differ by them."""
    write_csv(path, list(COLUMNS), [list(row.values()) for row in rows(gathered)])


def write_samples_parquet(gathered: Gathered, path: Path) -> None:
    """Write the table as parquet, with every text as it is (but for halves of surrogate pairs, which UTF-8 does not have)."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {column: pa.type_for_alias(NUMBERS.get(column, "string")) for column in COLUMNS}
    found = [
        {column: encodable(value) if isinstance(value, str) else value for column, value in row.items()}
        for row in rows(gathered)
    ]
    with room(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(found, schema=pa.schema(types.items())), path)
