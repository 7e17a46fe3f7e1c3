"""Files that are either whole or absent: atomic writes, JSON lines, content hashes; files that come along."""

import hashlib
import json
import os
import re
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import resources
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from discernment.disk import room
from discernment.errors import DataError

if TYPE_CHECKING:
    from pydantic import BaseModel

Row = TypeVar("Row", bound="BaseModel")
HALF_PAIR = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """The text with a replacement character for each half of a surrogate pair, which UTF-8 has no bytes for."""
    return HALF_PAIR.sub("\N{REPLACEMENT CHARACTER}", text)


def packaged_yaml(package: str, name: str) -> Any:
    """What a YAML file says that comes along in a package of ours."""
    return plain_yaml(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def plain_yaml(text: str) -> Any:
    """What a YAML text of ours says; many times faster where libyaml is there."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


class RepeatedKeyError(yaml.MarkedYAMLError):
    """A mapping has a key twice, of which YAML would silently take the last."""


class _UniqueKeys(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, and not where mappings are made: merged keys (`<<`) are not repeated ones.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key)
                if name in seen:
                    raise RepeatedKeyError(problem=key.value, problem_mark=key.start_mark)
                seen.add(name)
        return node


def read_yaml(text: str) -> Any:
    """What a YAML document says.

    Raises:
        yaml.YAMLError: If it is not YAML; a `RepeatedKeyError` if a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506
    except (ValueError, RecursionError) as error:  # such as a date with 13 months
        raise yaml.YAMLError(str(error)) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of it.

    Raises:
        DiskError: If there is no room for it; the old file stays.
    """
    content = text.encode()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with room(path.parent, len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


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
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} cannot be read as JSON ({error}).") from error


def read_text(path: Path, *, allow_torn_end: bool = False) -> str:
    """Read UTF-8 text, with or without a byte order mark.

    Args:
        path: The file.
        allow_torn_end: Leave out a last line that does not end, as an interrupted append leaves it.

    Raises:
        DataError: If the file cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes().removeprefix(BOM_UTF8)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if allow_torn_end:  # it may be torn within a character
        content = content[: content.rfind(b"\n") + 1]
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {number}, is not UTF-8 ({error.reason}); save the file as UTF-8."
        ) from error


def read_json_lines(path: Path, *, allow_torn_end: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield `(line number, value)` for every line that is not blank.

    Args:
        path: The file; UTF-8, one JSON document a line.
        allow_torn_end: Pass over a last line that does not end, as an interrupted append leaves it.

    Raises:
        DataError: If the file cannot be read, or a line is not JSON.
    """
    for number, line in enumerate(read_text(path, allow_torn_end=allow_torn_end).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, is not JSON ({error.msg}).") from error


def read_rows(path: Path, form: type[Row], what: str) -> list[Row]:
    """Read a JSON-lines file whose rows have one form.

    Args:
        path: The file.
        form: The form.
        what: What a row is, for the message.

    Raises:
        DataError: If the file cannot be read, or a row does not have the form.
    """
    from pydantic import ValidationError

    rows = []
    for number, row in read_json_lines(path):
        try:
            rows.append(form.model_validate(row))
        except ValidationError as error:
            raise DataError(f"{path}, line {number}, is not {what} ({error.errors()[0]['msg']}).") from error
    return rows


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append one JSON document a line and flush to disk; a torn last line is cut off first.

    Raises:
        DiskError: If there is no room for all rows; then none is appended.
    """
    added = b"".join(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)
    with room(path.parent, len(added)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as handle:
            handle.seek(0)
            content = handle.read()
            kept = content.rfind(b"\n") + 1
            handle.truncate(kept)
            append_whole(handle, added)
            os.fsync(handle.fileno())


def append_whole(handle: FileIO, content: bytes) -> None:
    """Write all of `content` at the end of a file that is open without a buffer, or nothing of it.

    Raises:
        OSError: If it cannot be written. What is appended next does not stand behind a torn row.
    """
    end, rest = handle.seek(0, os.SEEK_END), memoryview(content)
    try:
        while rest:
            rest = rest[handle.write(rest) :]
    except OSError:
        handle.truncate(end)
        raise


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`: key order and white space do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(*paths: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of those of several as if they were one."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()


def replace_directory(part: Path, final: Path) -> None:
    """Put the finished directory `part` in the place of `final`, which may exist."""
    if final.exists():
        shutil.rmtree(final)
    part.replace(final)
