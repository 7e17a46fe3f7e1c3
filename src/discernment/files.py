"""Files that are either whole or absent: atomic writes, JSON lines, content hashes; files that come along."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from discernment.errors import DataError


def packaged_yaml(package: str, name: str) -> Any:
    """What a YAML file says that comes along in a package of ours."""
    return yaml.safe_load(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8", newline="\n") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON document a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}).") from error


def read_json_lines(path: Path, *, allow_torn_end: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield `(line number, value)` for every line that is not blank.

    Args:
        path: The file; UTF-8, one JSON document a line.
        allow_torn_end: Pass over a last line that does not end, as an interrupted append leaves it.

    Raises:
        DataError: If the file cannot be read, or a line is not JSON.
    """
    try:
        content = path.read_bytes()
        if allow_torn_end:  # it may be torn within a character
            content = content[: content.rfind(b"\n") + 1]
        lines = content.decode("utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}).") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, is not JSON ({error.msg}).") from error


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append one JSON document a line and flush to disk; a torn last line is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as handle:
        handle.seek(0)
        content = handle.read()
        if content and not content.endswith(b"\n"):
            handle.truncate(content.rfind(b"\n") + 1)
        handle.write(
            b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)
        )
        handle.flush()
        os.fsync(handle.fileno())


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`: key order and white space do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def replace_directory(part: Path, final: Path) -> None:
    """Put the finished directory `part` in the place of `final`, which may exist."""
    if final.exists():
        shutil.rmtree(final)
    part.replace(final)
