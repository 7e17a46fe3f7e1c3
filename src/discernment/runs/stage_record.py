"""What is known of a finished stage, and whether its files are still those that it left."""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open

from discernment.errors import DataError
from discernment.files import file_hash, read_json, read_json_lines, write_json, write_json_lines
from discernment.frozen import Frozen
from discernment.models import adapter_files
from discernment.policies import policy_spec

FILE = "stage.json"
SMALL = 8 << 20
"""Files of up to so many bytes are read even where a quick look is asked for."""

logger = logging.getLogger(__name__)


class FileFacts(Frozen):
    """Size in bytes and SHA-256 (hex) of a file."""

    size: int
    sha256: str


class StageRecord(BaseModel):
    """What is known of a finished stage.

    Attributes:
        id: Directory name: the stage's name and its key.
        name: The stage's name.
        seconds: Wall-clock seconds, without those of interrupted attempts.
        peak_memory_bytes: Peak memory, where the system tells.
        steps: Optimizer steps, or prompts evaluated.
        tokens: Tokens seen and generated.
        inputs: What the stage depends on, in short.
        notes: Facts that the stage itself reports.
        files: What the stage left, by path in its directory; None in records of older versions.
        key: What its function and its inputs come to, where the directory's name does not say it; None in records of
            older versions.
    """

    id: str
    name: str
    seconds: float
    peak_memory_bytes: int | None
    steps: int
    tokens: int
    inputs: dict[str, Any]
    notes: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, FileFacts] | None = None
    key: str | None = Field(None, exclude_if=lambda key: key is None)

    @field_validator("files")
    @classmethod
    def _within(cls, files: dict[str, FileFacts] | None) -> dict[str, FileFacts] | None:
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files or ()):
            raise ValueError("a file lies outside of the directory")
        return files

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `stage.json`.

        Raises:
            DataError: If it is missing or damaged.
        """
        try:
            return cls.model_validate(read_json(folder / FILE))
        except ValidationError as error:
            raise DataError(
                f"{folder / FILE} is no record of a stage ({error.errors()[0]['msg']})."
            ) from error

    def write(self, folder: Path) -> None:
        """Write `stage.json` into a stage's directory, with what the directory holds by now."""
        files = {
            name: FileFacts(size=(folder / name).stat().st_size, sha256=file_hash(folder / name))
            for name in _names(folder)
        }
        write_json(folder / FILE, self.model_copy(update={"files": files}).model_dump(mode="json"))

    def damage(self, folder: Path, *, verify: bool = False) -> dict[str, str]:
        """What is wrong with the files that the stage left, by name; nothing where the record does not list them.

        What was added to the directory since is none of the stage's business.

        Args:
            folder: The stage's directory.
            verify: Compare the content of every file. A quick look compares sizes, and the content of small files.
        """
        found = {
            name: _difference(folder / name, facts, verify) for name, facts in (self.files or {}).items()
        }
        return {name: difference for name, difference in found.items() if difference}

    def added(self, folder: Path) -> set[str]:
        """What lies in the stage's directory and was not left by the stage."""
        return set(_names(folder)) - (self.files or {}).keys()


def find_damage(folder: Path, *, verify: bool = False) -> dict[str, str]:
    """What is wrong with a finished stage of a run, by file; nothing if it is whole.

    Where the record lists no files, those are damaged that cannot be read.

    Args:
        folder: The stage's directory.
        verify: As in `StageRecord.damage`.
    """
    try:
        record = StageRecord.read(folder)
    except DataError:
        return {FILE: "cannot be read" if (folder / FILE).is_file() else "is gone"}
    return _unreadable(folder) if record.files is None else record.damage(folder, verify=verify)


def not_vouched_for(folder: Path) -> set[str]:
    """What a damaged stage cannot go on from: what its record does not list.

    Where nothing is listed, only logs tell themselves what they hold: their rows have keys.
    """
    try:
        record = StageRecord.read(folder)
    except DataError:
        record = None
    if record is None or record.files is None:
        return {name for name in _names(folder) if not _is_keyed_log(folder / name)}
    return record.added(folder)


def in_words(damage: Mapping[str, str]) -> str:
    """Damage for a message."""
    said = [f"{name} {what}" for name, what in damage.items()]
    return ", ".join(said[:3]) + (f", and {len(said) - 3} more" if len(said) > 3 else "")


def salvage(folder: Path, damage: Iterable[str], others: Iterable[str]) -> None:
    """Make an unfinished stage of a damaged one: what is whole stays, and is gone on from.

    Replies and judgements that were paid for are not asked for again; what a stage trains, it trains again.

    Args:
        folder: The stage's directory, which becomes its `.part`.
        damage: The files that are damaged.
        others: Further files that it must not go on from.
    """
    part = folder.with_name(f"{folder.name}.part")
    if part.exists():  # it was to take the place of this one already
        shutil.rmtree(folder)
        return
    for name in {FILE, *damage, *others}:
        (folder / name).unlink(missing_ok=True)
    folder.replace(part)


def drop_unreadable(part: Path) -> None:
    """Leave out of an unfinished stage what cannot be read any more, so that the rest can be gone on from."""
    for name in _names(part):
        path = part / name
        if name.startswith("checkpoints/") or _reads(path, allow_torn_end=True):
            continue
        logger.warning("%s is damaged; what can be read of it is kept.", path)
        rows = [*_rows(path)] if path.suffix == ".jsonl" else []
        if rows:
            write_json_lines(path, rows)
        else:
            path.unlink()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a damaged file that can be read."""
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _names(folder: Path) -> list[str]:
    """The files of a stage's directory but its record, in order."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / FILE
    ]


def _difference(path: Path, facts: FileFacts, verify: bool) -> str | None:
    """How a file is not what it was; None where it is."""
    if not path.is_file():
        return "is gone"
    size = path.stat().st_size
    if size != facts.size:
        return f"has {size} bytes instead of {facts.size}"
    if (verify or size <= SMALL) and file_hash(path) != facts.sha256:
        return "has another content"
    return None


def _unreadable(folder: Path) -> dict[str, str]:
    """What cannot be read in a directory, and what its policy names in it that is not there."""
    found = {name: "cannot be read" for name in _names(folder) if not _reads(folder / name)}
    if policy_spec.FILE not in found and (folder / policy_spec.FILE).is_file():
        try:
            policy = policy_spec.PolicySpec.read(folder)
        except DataError:
            return {**found, policy_spec.FILE: "is no policy"}
        within = Path(os.path.normpath(folder))
        weights = [Path(policy.model.model) / "model.safetensors"]  # or in parts, which are named otherwise
        weights += [Path(path) / adapter_files.WEIGHTS for path in policy.adapters]
        weights += [Path(policy.rule.tensors)] if policy.rule and policy.rule.tensors else []
        own = [path for path in weights if path.is_relative_to(within)]
        gone = [path for path in own if not any(path.parent.glob("*.safetensors"))]
        found |= {path.relative_to(within).as_posix(): "is gone" for path in gone}
    return found


def _reads(path: Path, *, allow_torn_end: bool = False) -> bool:
    """Whether a file has the form that its name says; a file of rows may end in the middle of one if it is unfinished."""
    try:
        if path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jsonl":
            if not all(
                isinstance(row, dict) for _, row in read_json_lines(path, allow_torn_end=allow_torn_end)
            ):
                return False
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                pass
    except (DataError, OSError, SafetensorError):
        return False
    return True


def _is_keyed_log(path: Path) -> bool:
    """Whether a file holds answers, each under a key that says what it is the answer to."""
    try:
        return path.suffix == ".jsonl" and all(
            isinstance(row, dict) and "key" in row for _, row in read_json_lines(path)
        )
    except DataError:
        return False
