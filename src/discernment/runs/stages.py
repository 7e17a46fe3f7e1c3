"""Stages with memory: each is named after all that it depends on, and done once."""

import gc
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from pydantic import BaseModel

from discernment.cost import StageCost
from discernment.disk import room
from discernment.errors import DataError, DiskError, RunError
from discernment.files import content_hash, read_json, replace_directory, write_json
from discernment.models.loading import model_fingerprint
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs import stage_record
from discernment.runs.claims import Claim, claimed
from discernment.runs.directory import alone
from discernment.runs.resources import Meter
from discernment.runs.stage_record import (
    StageRecord,
    drop_unreadable,
    find_damage,
    in_words,
    not_vouched_for,
    salvage,
)
from discernment.training.checkpoints import remove_torn_checkpoints
from discernment.training.trackers import FOLDER, tracked

FORM = 2
"""Raise it when the meaning of a stage's output changes: old outputs are then not taken for new ones."""
BESIDE = {"results.json", "report.html"}
"""What verbs write beside a stage into the directory that the user names."""

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Hears what is going on, to show it."""

    def plan(self, stages: Sequence[str]) -> None:
        """A whole run begins, which has these stages, by name; some may be there already, and a few more may come."""

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """A stage begins, or its earlier result is taken."""

    def progress(self, what: str, done: int, of: int) -> None:
        """`done` of `of` prompts are done."""

    def of_task(self, name: str) -> "Reporter":
        """Who hears what a task in another process does; it is sent there."""


class Quiet:
    """A reporter that says nothing."""

    def plan(self, stages: Sequence[str]) -> None:
        """Say nothing."""

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Say nothing."""

    def of_task(self, name: str) -> Self:
        """Say nothing of tasks either."""
        return self


class Alike(NamedTuple):
    """What a stage may take from a finished one of its name that differs in a single input.

    Attributes:
        but_for: The input.
        files: Files of the other stage that do not depend on that input.
    """

    but_for: str
    files: tuple[str, ...]


class StageRunner:
    """Runs stages in a directory, or finds their earlier results.

    A stage's directory is `<name>-<key>`, the key being a hash of its function and its inputs: another recipe that
    shares a stage shares its result. A stage works in `<name>-<key>.part`, which is renamed at the end; what an
    interrupted one left there (checkpoints, replies) is what it goes on from.

    A finished stage is looked at before it is taken: what is damaged is made again from what is whole of it.

    Args:
        directory: Where the stages' directories lie.
        reporter: Hears what is going on.
        verify: Read every file of a finished stage before it is taken, large ones too.
        trackers: Where curves are sent; None for what the environment names. No stage depends on it.
    """

    def __init__(
        self,
        directory: Path,
        reporter: Reporter,
        *,
        verify: bool = False,
        trackers: Sequence[str] | None = None,
    ) -> None:
        self.directory = directory
        self._resolved = directory.resolve()  # policies name it in their own way
        self.reporter = reporter
        self.verify = verify
        self.trackers = trackers
        self.owner = ""
        self.records: dict[str, StageRecord] = {}
        self.owners: dict[str, list[str]] = {}
        self.ran = 0
        self._fingerprints: dict[ModelSpec, str] = {}

    def __call__(
        self, name: str, work: Callable[..., StageCost], *, start: PolicySpec, **inputs: Any
    ) -> PolicySpec:
        """Run a stage that leaves a policy; see `methods.Stage`."""
        return PolicySpec.read(self.run(name, work, {"start": start, **inputs}))

    def run(
        self,
        name: str,
        work: Callable[..., StageCost],
        inputs: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        alike: Alike | None = None,
    ) -> Path:
        """Run `work(out=..., **inputs, **extra)` unless that was done before, and return its directory.

        Args:
            name: The stage's name.
            work: Writes its results into the directory `out`.
            inputs: What the result depends on: policies, prompt sets, options.
            extra: Arguments that it does not depend on, such as a progress callback.
            alike: What it may go on from, where another stage of this name did the same but for one input.

        Raises:
            RunError: If this process stood still for so long that another took the stage over.
        """
        described = self.describe(inputs)
        final = self.place(name, work, inputs)
        with claimed(final) as claim:  # another process that needs it waits, and then finds it done
            reused = final.name in self.records or self._is_whole(final)
            self.reporter.stage(name, self.owner, reused=reused)
            if not reused:
                if alike is not None and (other := self._like(alike, name, work, described)) is not None:
                    _go_on_from(other, alike.files, final)
                curves = self._resolved.parent / FOLDER  # where runs share stages, beside these
                with tracked(self.trackers, curves, f"{self.owner} {final.name}".strip()):
                    _work(name, final, work, {**inputs, **(extra or {})}, described, claim)
                self.ran += 1
        self.records[final.name] = StageRecord.read(final)
        self.owners.setdefault(final.name, []).append(self.owner)
        return final

    def place(self, name: str, work: Callable[..., StageCost], inputs: Mapping[str, Any]) -> Path:
        """Where a stage with these inputs lies once it is done."""
        return self.directory / _folder_name(name, work, self.describe(inputs))

    def _is_whole(self, final: Path) -> bool:
        """Whether there is a finished stage; a damaged one becomes an unfinished one."""
        if not final.is_dir():
            return False
        damage = find_damage(final, verify=self.verify)
        if damage:
            _say_damage(final, damage)
            salvage(final, damage, not_vouched_for(final))
        return not damage

    def _like(
        self, alike: Alike, name: str, work: Callable[..., StageCost], described: Mapping[str, Any]
    ) -> Path | None:
        """A finished stage that differs in one input; its files are looked at only where all else is the same."""

        def rest(inputs: Mapping[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in inputs.items() if key != alike.but_for}

        for folder in sorted(self.directory.glob(f"{name}-*")):
            try:
                inputs = StageRecord.read(folder).inputs
            except DataError:  # not finished, or damaged
                continue
            same = rest(inputs) == rest(described) and folder.name == _folder_name(name, work, inputs)
            if same and not find_damage(folder):
                return folder
        return None

    def look(
        self,
        name: str,
        work: Callable[..., StageCost],
        inputs: Mapping[str, Any],
        alike: Alike | None = None,
        /,
        **extra: Any,
    ) -> Path:
        """Run a stage that looks at the owner's policy: it is told the owner's name and tells its progress."""
        told = {"name": self.owner, "progress": self.reporter.progress, **extra}
        return self.run(name, work, inputs, told, alike)

    def stages_of(self, owner: str) -> list[str]:
        """Ids of the stages that `owner` asked for, in the order in which they were first run."""
        return [key for key, owners in self.owners.items() if owner in owners]

    def describe(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What stands for the inputs in the key, and in the record."""
        return {key: self._describe(value) for key, value in inputs.items()}

    def _describe(self, value: Any) -> Any:
        """What stands for an input in the key."""
        if isinstance(value, PolicySpec | ModelSpec):
            value = PolicySpec.of(value)
            return {"policy": value.fingerprint(self._fingerprint)}
        if isinstance(value, PromptSet):
            return {"name": value.provenance.name, "prompts": len(value), "sha256": value.fingerprint}
        if isinstance(value, Path) and value.parent.resolve() == self._resolved:
            return {"stage": value.name}  # which says all that it came from
        if hasattr(value, "fingerprint"):
            return value.fingerprint
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json")
        if isinstance(value, list | tuple):
            return [self._describe(v) for v in value]
        return value

    def _fingerprint(self, spec: ModelSpec) -> str:
        stage = Path(spec.model).parent
        if stage.name in self.records and stage.parent.resolve() == self._resolved:
            # Its name says all that it came from; hashing its weights would say no more.
            return content_hash([stage.name, spec.model_dump(mode="json", exclude={"model", "device"})])
        if spec not in self._fingerprints:
            self._fingerprints[spec] = model_fingerprint(spec)
        return self._fingerprints[spec]


def _folder_name(name: str, work: Callable[..., StageCost], described: Mapping[str, Any]) -> str:
    return f"{name}-{content_hash([FORM, f'{work.__module__}.{work.__qualname__}', described])[:12]}"


def _go_on_from(other: Path, files: Sequence[str], final: Path) -> None:
    """Put files of another stage where an unfinished one would have left them."""
    part = final.with_name(f"{final.name}.part")
    if part.exists():
        return
    with room(part):
        part.mkdir(parents=True)
        for file in files:
            if (other / file).is_file():
                shutil.copy2(other / file, part / file)


def _work(
    name: str,
    final: Path,
    work: Callable[..., StageCost],
    arguments: dict[str, Any],
    described: Any,
    claim: Claim | None = None,
    key: str | None = None,
) -> None:
    part = final.with_name(f"{final.name}.part")
    try:
        with room(part):
            part.mkdir(parents=True, exist_ok=True)
            drop_unreadable(part)
            with Meter() as meter:
                cost = work(out=part, **arguments)
            record = StageRecord(
                id=final.name,
                name=name,
                seconds=round(meter.seconds, 2),
                peak_memory_bytes=meter.peak_memory_bytes,
                inputs=described,
                key=key,
                **cost.model_dump(),
            )
            record.write(part)
    except DiskError:
        remove_torn_checkpoints(part)
        raise
    if claim is not None and not claim.holds:
        raise RunError(
            f"This process stood still for so long that another took {final.name} over; give the same command again."
        )
    replace_directory(part, final)
    gc.collect()  # the next stage loads another model


def _say_damage(folder: Path, damage: Mapping[str, str]) -> None:
    logger.warning("The stage in %s is damaged (%s); it is made again.", folder, in_words(damage))


def run_into(
    out: Path,
    name: str,
    work: Callable[..., StageCost],
    inputs: Mapping[str, Any],
    reporter: Reporter,
    extra: Mapping[str, Any] | None = None,
) -> bool:
    """Run one stage into a directory that the user names.

    Returns:
        Whether there was anything to do; where the same was done before, all its files are read to see if they are whole.

    Raises:
        RunError: If `out` holds something else, or another process works there.
        DiskError: If there is no room for what the stage leaves.
    """
    if out.is_symlink():  # what is put in its place would leave what it points to
        out = out.resolve()
    with alone(out):
        described = StageRunner(out.parent, reporter).describe(inputs)
        key = _folder_name(name, work, described)
        if (out / stage_record.FILE).is_file() and _is_done(out, described, key):
            reporter.stage(name, "", reused=True)
            return False
        if out.is_file() or (out.exists() and any(out.iterdir())):
            raise RunError(f"The directory {out} holds something else already; name another with --out.")
        part = out.with_name(f"{out.name}.part")
        note = part / "inputs.json"
        noted = {"stage": key, "inputs": described}
        same = not note.is_file() or _read(note) in (noted, described)  # the latter by older versions
        if not same and any(path != note for path in part.iterdir()):
            raise RunError(
                f"The directory {part} holds an interrupted stage with other inputs; remove it or name another."
            )
        write_json(note, noted)
        reporter.stage(name, "", reused=False)
        with tracked(None, out.absolute().parent / FOLDER, out.absolute().name):
            _work(name, out, work, {**inputs, **(extra or {})}, described, key=key)
        return True


def _is_done(out: Path, described: Mapping[str, Any], key: str) -> bool:
    """Whether a directory of the user's holds this stage; a damaged one becomes an unfinished one.

    Raises:
        RunError: If its record cannot be read, or it is damaged and holds files of others.
    """
    try:
        record = StageRecord.read(out)
    except DataError as error:
        raise RunError(
            f"{out / stage_record.FILE} cannot be read, so nothing tells what {out} holds; remove the directory, or name "
            "another with --out."
        ) from error
    if record.inputs != described or record.key not in (None, key):
        return False
    damage, added = record.damage(out, verify=True), record.added(out)
    if damage and added - BESIDE:
        raise RunError(
            f"{out} is damaged ({in_words(damage)}) and also holds files of others, such as {min(added - BESIDE)}; move "
            "those away, and the same command makes it again."
        )
    if damage:
        _say_damage(out, damage)
        salvage(out, damage, added)
    return not damage


def _read(file: Path) -> Any:
    """A JSON file; None where it is damaged."""
    try:
        return read_json(file)
    except DataError:
        return None


def share_stages(run: Path, stages: Path) -> None:
    """Let a run have its stages in a directory that other runs share.

    Args:
        run: The run's directory, which is made if need be, and gets a link.
        stages: The shared directory. The link is relative: the two can be moved together.

    Raises:
        RunError: If the run has stages of its own.
    """
    run.mkdir(parents=True, exist_ok=True)
    stages.mkdir(exist_ok=True)
    link = run / "stages"
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(stages, run), target_is_directory=True)
    elif link.resolve() != stages.resolve():
        raise RunError(
            f"{link} is in the way of the stages that all runs in {stages.parent} share; move it away or name another "
            "directory."
        )
