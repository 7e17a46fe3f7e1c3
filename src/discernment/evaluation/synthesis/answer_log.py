"""Answers of models, each written to a file as it comes, so that no question is asked twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from discernment.errors import DataError
from discernment.evaluation.synthesis.chat_models import Answer
from discernment.files import append_json_lines, read_json_lines

__all__ = ["AnswerLog"]


class AnswerLog:
    """Answers by key, in a JSON-lines file.

    Args:
        path: The file; it need not be there yet.

    Raises:
        DataError: If it is damaged otherwise than by an interrupted write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Answer] = {}
        append_json_lines(path, [])  # cuts off what an interrupted write left
        for number, row in read_json_lines(path):
            try:
                self._known[row["key"]] = Answer(row["answer"], row["finished"])
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}, is no answer; delete the file to ask anew."
                ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Answer:
        return self._known[key]

    def add(self, key: str, answer: Answer, about: dict[str, Any]) -> None:
        """Keep an answer, and beside it what it is about."""
        self._known[key] = answer
        row = {"key": key, **about, "answer": answer.text, "finished": answer.finished}
        with self.path.open("a", encoding="utf-8", newline="\n") as handle:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
