"""Answers that were paid for, kept by key so that nothing is asked twice."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from discernment.disk import room
from discernment.errors import DataError
from discernment.files import append_json_lines, append_whole, read_json_lines

Value = TypeVar("Value")


class KeyedLog(Generic[Value]):
    """Values by key, each written to a JSON-lines file as it comes; safe among threads.

    Args:
        path: The file, which need not be there yet; without one, values are kept in memory only.
        read: Makes the value of a row.
        complaint: What is wrong with a row of which it cannot, and what to do.

    Raises:
        DataError: If the file is damaged otherwise than by an interrupted write.
    """

    def __init__(self, path: Path | None, read: Callable[[dict[str, Any]], Value], complaint: str) -> None:
        self.path = path
        self._lock = Lock()
        self._known: dict[str, Value] = {}
        if path is None:
            return
        append_json_lines(path, [])  # cuts off what an interrupted write left
        for number, row in read_json_lines(path):
            try:
                self._known[row["key"]] = read(row)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}, line {number}, {complaint}.") from error

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Value:
        return self._known[key]

    def add(self, key: str, value: Value, row: dict[str, Any]) -> None:
        """Keep a value, and write `row`, from which it can be read again.

        Raises:
            DiskError: If there is no room for the row.
        """
        line = json.dumps({"key": key, **row}, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._known[key] = value
            if self.path is not None:
                with room(self.path.parent, len(line)), self.path.open("ab", buffering=0) as handle:
                    append_whole(handle, line)
