"""Rows of a file: JSON lines, JSON, CSV and Parquet, packed or not, in any encoding.

Files are read by Python's `json`, by pandas and by pyarrow, as `datasets` reads them, but as they are: `datasets` would
keep a copy of each, make numbers of ids such as 007 and nothing of the word NA, and lose the number of a wrong line.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from discernment.errors import DataError

Kind = Literal["json", "csv", "parquet"]

KINDS: Mapping[str, Kind] = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
PACKED_BEGIN = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
"""What packed files begin with, whatever they are called; no text in UTF-8 or UTF-16 does."""
SEPARATORS = (",", ";", "\t", "|")
SAID_BY_EXCEL = re.compile(r"sep=(.)\r?", re.IGNORECASE)
"""A line that Excel writes before the header."""

Row = tuple[int, Mapping[str, Any]]
"""A row and its number, counted from 1."""


class Table(NamedTuple):
    """The rows of a file.

    Attributes:
        unit: What the numbers count: `line` or `row`.
        rows: The rows, in order.
    """

    unit: str
    rows: Iterable[Row]


def kind_of(name: str) -> Kind | None:
    """What kind of table a name ends like, packed or not; None if it is no table's."""
    path = Path(name.casefold())
    return KINDS.get(path.with_suffix("").suffix if path.suffix in PACKED else path.suffix)


def name_of(path: Path) -> str:
    """What to call the set in a file: the file's name without its endings."""
    return Path(path.stem).stem if path.suffix.lower() in PACKED else path.stem


def known_endings() -> str:
    """The endings of names of tables, for messages."""
    return f"{', '.join(KINDS)}, also with {', '.join(PACKED)} behind"


def read_table(
    path: Path, kind: Kind | None = None, *, encoding: str | None = None, wanted: Sequence[str] = ()
) -> Table:
    """Read the rows of a file.

    Args:
        path: The file.
        kind: What kind it is; by default what its name says.
        encoding: Its encoding; by default UTF-8, or UTF-16 or UTF-32 where its first bytes leave no doubt.
        wanted: Columns, one of which the table must have; by them the separator of a CSV file is found.

    Raises:
        DataError: If it cannot be read; where that is due to a line, the message names it.
    """
    kind = kind or kind_of(path.name)
    if kind is None:
        raise DataError(f"{path} is no table; save it as one of {known_endings()}.")
    content = _content(path)
    if kind == "parquet":
        if encoding is not None:
            raise DataError(f"{path} is a Parquet file, which has no encoding; leave `encoding` out.")
        return Table("row", _parquet(path, content))
    text = _decoded(path, content, encoding)
    if kind == "csv":
        return Table("row", enumerate(_csv(path, text, wanted), start=1))
    return _json(path, text)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    packed = next((how for begin, how in PACKED_BEGIN.items() if content.startswith(begin)), None)
    if packed is None:
        if path.suffix.lower() in PACKED and content:
            raise DataError(f"{path} is not packed as its name says; rename it, or pack it anew.")
        return content
    import pyarrow

    try:
        with pyarrow.input_stream(memoryview(content), compression=packed) as stream:
            return bytes(stream.read())
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be unpacked ({_first_line(error)}); get or pack it anew.") from error


def _decoded(path: Path, content: bytes, encoding: str | None) -> str:
    # The zeros of a text that begins with an ASCII character tell UTF-16 and UTF-32 where there is no mark.
    found = encoding or json.detect_encoding(content)
    try:
        return content.decode(found).removeprefix("\ufeff")
    except LookupError:
        raise DataError(
            f"There is no encoding {encoding!r}, as which {path} is to be read; name one that Python knows, such as "
            "utf-16 or cp1252."
        ) from None
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        advice = (
            "name the right `encoding`"
            if encoding
            else "save it as UTF-8, or name the `encoding` that it has, such as cp1252 for many programs on Windows"
        )
        name = "UTF-8" if found.startswith("utf-8") else found
        raise DataError(f"{path}, line {number}, is not {name} ({error.reason}); {advice}.") from error
    except UnicodeError as error:  # of an encoding that is none of texts, such as `undefined`
        raise DataError(
            f"{path} cannot be read as {encoding!r} ({_first_line(error)}); name its encoding, such as utf-16 or cp1252."
        ) from error


# ---------------------------------------------------------------------- JSON


def _json(path: Path, text: str) -> Table:
    """One array, one object, or an object a line."""
    try:
        document = _loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("[") and error.msg != "Extra data":
            raise DataError(f"{path}, line {error.lineno}, is not JSON ({error.msg}); mend it.") from error
        return Table("line", _objects(path, "line", _lines(path, text)))
    if isinstance(document, list):
        return Table("row", _objects(path, "row", enumerate(document, start=1)))
    first = text[: len(text) - len(text.lstrip())].count("\n") + 1
    return Table("line", _objects(path, "line", [(first, document)]))


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, _loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}, is not JSON ({error.msg}); mend it.") from error


def _objects(path: Path, unit: str, values: Iterable[tuple[int, Any]]) -> Iterator[Row]:
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, {unit} {number}, is not a JSON object; write each prompt as one, with its columns as keys."
            )
        yield number, value


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise json.JSONDecodeError(_first_line(error), text, 0) from error


# ---------------------------------------------------------------------- CSV and Parquet


def _csv(path: Path, text: str, wanted: Sequence[str]) -> list[dict[str, str]]:
    import pandas

    separators: Sequence[str] = SEPARATORS
    first, _, rest = text.partition("\n")
    if SAID_BY_EXCEL.fullmatch(first):
        separators, text = first[4], rest
    headers = {separator: _header(text.lstrip("\r\n"), separator) for separator in separators}
    usual = "\t" if ".tsv" in path.name.casefold() else ","
    separator = max(
        separators, key=lambda s: (bool(set(headers[s]) & set(wanted)), len(headers[s]), s == usual)
    )
    names = headers[separator]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns {twice!r}; rename one of them.")
    _check_quotes(path, text, separator)
    try:
        # Texts as they are: no numbers of ids such as 007, nothing of the word NA.
        table = pandas.read_csv(StringIO(text), sep=separator, dtype=object, na_filter=False)
    except pandas.errors.EmptyDataError:
        return []
    except (pandas.errors.ParserError, ValueError) as error:
        reason = _first_line(error).removeprefix("Error tokenizing data; C error: ")
        raise DataError(
            f"{path} cannot be read as CSV ({reason}); quote the texts that hold {separator!r}, quotes or line breaks."
        ) from error
    if not isinstance(table.index, pandas.RangeIndex):  # what the header has no name for became row labels
        raise DataError(
            f"{path} has rows with more fields than its header has names; quote the texts that hold {separator!r}."
        )
    table.columns = table.columns.str.strip()
    rows: list[dict[str, str]] = table.to_dict("records")
    return rows


def _check_quotes(path: Path, text: str, separator: str) -> None:
    """Whether quotes are closed and doubled; what reads tables takes all up to the next quote for one text.

    Raises:
        DataError: If they are not.
    """
    lines = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for _ in lines:
            pass
    except csv.Error as error:
        if "field larger" in str(error):  # a long text is none of its business
            return
        raise DataError(
            f"{path}, line {lines.line_num}, has a quote that is neither closed nor doubled ({error}); mend the text that begins "
            "with a quote there or above."
        ) from error


def _header(text: str, separator: str) -> list[str]:
    try:
        return [
            name.strip() for name in next(csv.reader(StringIO(text, newline=""), delimiter=separator), [])
        ]
    except csv.Error:  # a text of more than 131,072 characters is no name
        return []


def _parquet(path: Path, content: bytes) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.read_table(pyarrow.BufferReader(content)).to_batches()
        rows = [row for batch in batches for row in batch.to_pylist()]
    # Texts that are no UTF-8 and time zones that nobody knows are found as they are turned into Python's.
    except (OSError, pyarrow.ArrowException, ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({_first_line(error)}); save it anew.") from error
    return enumerate(rows, start=1)


def _first_line(error: BaseException) -> str:
    """What a library says, as a part of a sentence."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".").replace(". ", "; ")
