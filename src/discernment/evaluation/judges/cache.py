"""Judgements that were paid for, kept so that none is asked for twice."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Lock

from discernment.errors import DataError
from discernment.evaluation.judges.judge import Judgement
from discernment.evaluation.sample import Verdict
from discernment.files import append_json_lines, read_json_lines

__all__ = ["JudgementCache"]


class JudgementCache:
    """Judgements by content hash, each written to a JSON-lines file as it comes; safe among threads.

    Args:
        path: The file; without one, judgements are kept in memory only.

    Raises:
        DataError: If the file is damaged otherwise than by an interrupted write.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = Lock()
        self._known: dict[str, Judgement] = {}
        if path is None:
            return
        append_json_lines(path, [])  # cuts off what an interrupted write left
        for number, row in read_json_lines(path):
            try:
                self._known[row["key"]] = Judgement(Verdict(row["verdict"]), row["reason"])
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}, line {number}, is no judgement; delete the file to judge anew."
                ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Judgement:
        return self._known[key]

    def add(self, key: str, judgement: Judgement) -> None:
        """Keep one judgement."""
        row = {"key": key, "verdict": judgement.verdict.value, "reason": judgement.reason}
        with self._lock:
            self._known[key] = judgement
            if self.path is not None:
                with self.path.open("a", encoding="utf-8", newline="\n") as handle:
                    handle.write(json.dumps(row, ensure_ascii=False) + "\n")
