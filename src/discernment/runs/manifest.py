"""The manifest of a run: what was done with what, and what came out, for the report and for other verbs."""

import logging
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import discernment
from discernment.errors import DataError, RunError
from discernment.files import read_json, write_json
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec
from discernment.runs.directory import check_one_run, holds_recipe
from discernment.runs.mending import how_to_mend, what_is_wrong
from discernment.runs.preparation import Prepared
from discernment.runs.recipe import MethodEntry, Recipe, stands_on
from discernment.runs.stage_record import find_damage, in_words
from discernment.runs.stages import StageRunner

FILE = "manifest.json"
VERSION = 2
"""Of the manifest and of the stages that lie beside it: those of version 1 are named otherwise."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pytorch-metric-learning")

logger = logging.getLogger(__name__)


def check_version(directory: Path) -> None:
    """Make sure that a directory holds no run of another version, whose stages would not be found again.

    Raises:
        RunError: If it does.
    """
    known = _known(directory)
    if known is None and (directory / FILE).is_file():
        logger.warning("%s is damaged; it is written anew.", directory / FILE)
    if known is not None and known["schema_version"] != VERSION:
        raise RunError(
            f"{directory} holds a run of another version of discernment, which this one can report on, compare and "
            "talk to but not go on with; name another directory with --out."
        )


def policy_of(directory: Path, method: str) -> PolicySpec:
    """The policy that a method of a run left; also of a run of version 1, which named a model.

    Raises:
        DataError: If the run has no such method, or its manifest cannot be read.
        RunError: If the directory is that of several seeds.
    """
    methods = methods_of(directory)
    if method not in methods:
        raise DataError(f"The run {directory} has no method {method!r}; it has {', '.join(methods)}.")
    entry = methods[method]
    try:
        if "policy" in entry:
            return _whole(PolicySpec.model_validate(entry["policy"]).in_folder(directory), directory)
        found = PolicySpec.of(ModelSpec.model_validate(entry["model"]))
    except (ValidationError, KeyError, TypeError) as error:
        raise DataError(
            f"{directory / FILE} does not say what policy {method!r} is; {how_to_mend(directory)}."
        ) from error
    path = found.model.model  # relative to the run where it lies in it
    return found.with_model(model=str(directory / path)) if path.startswith("stages/") else found


def methods_of(directory: Path) -> dict[str, dict[str, Any]]:
    """What the manifest of a run says of each of its methods.

    Raises:
        DataError: If it is missing or damaged.
        RunError: If the directory is that of several seeds.
    """
    check_one_run(directory)
    try:
        found = read_json(directory / FILE)
    except DataError as error:
        raise DataError(f"{what_is_wrong(error)}; {how_to_mend(directory)}.") from error
    methods = found.get("methods") if isinstance(found, dict) else None
    whole = isinstance(methods, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("stages", []), list) for entry in methods.values()
    )
    if not whole:
        raise DataError(f"{directory / FILE} is no manifest of a run; {how_to_mend(directory)}.")
    assert isinstance(methods, dict)
    return methods


def _whole(policy: PolicySpec, directory: Path) -> PolicySpec:
    """A policy whose stages in the run have all that they left.

    Raises:
        DataError: If one is damaged.
    """
    paths = [policy.model.model, *policy.adapters, policy.rule and policy.rule.tensors]
    stages = {Path(path).parent for path in paths if path}
    own = (directory / "stages").resolve()  # seeds share one
    for stage in sorted(stage for stage in stages if stage.parent.resolve() == own):
        if damage := find_damage(stage):
            raise DataError(f"{stage} is damaged ({in_words(damage)}); {how_to_mend(directory)}.")
    return policy


class Manifest:
    """Writes `manifest.json` as a run goes on.

    Args:
        directory: The run's directory.
        recipe: Its recipe.
        prepared: What the recipe names.
        stage: The runner of its stages.
    """

    def __init__(self, directory: Path, recipe: Recipe, prepared: Prepared, stage: StageRunner) -> None:
        self.directory = directory
        self.recipe = recipe
        self.prepared = prepared
        self.stage = stage
        self.methods: dict[str, dict[str, Any]] = {}
        self.created = _created(directory, recipe)
        self.judge = recipe.evaluate.judge.build().name

    def add(self, entry: MethodEntry, policy: PolicySpec) -> None:
        """Write down which policy a method left."""
        options = self.recipe.options(entry)
        self.methods[entry.label] = {
            "method": entry.method,
            "on": stands_on(entry),
            "policy": policy.relative_to(self.directory).model_dump(mode="json", exclude_defaults=True),
            "options": {
                "refine": options.refine and options.refine.model_dump(mode="json"),
                "align": options.align.model_dump(mode="json"),
                "own": options.own.model_dump(mode="json"),
            },
        }

    def write(self, status: str) -> None:
        """Write the file; `status` is `running` or `complete`."""
        content = {
            "schema_version": VERSION,
            "name": self.recipe.name,
            "status": status,
            "created": self.created,
            "finished": _now() if status == "complete" else None,
            "discernment": discernment.__version__,
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "base_model": self.recipe.model.model,
            "judge": self.judge,
            "thinking": self.recipe.model.thinking,
            "date": self.recipe.model.date.isoformat(),
            "seen_in_training": self.prepared.seen_in_training,
            "skipped_attacks": self.prepared.skipped,
            "stages": {
                key: {
                    **record.model_dump(mode="json", exclude={"files"}),
                    "methods": list(dict.fromkeys(self.stage.owners[key])),
                }
                for key, record in self.stage.records.items()
            },
            "methods": {
                label: {**method, "stages": self.stage.stages_of(label)}
                for label, method in self.methods.items()
            },
        }
        write_json(self.directory / FILE, content)


def _created(directory: Path, recipe: Recipe) -> str:
    """When the run began: kept from an earlier call with the same recipe."""
    known = _known(directory) if holds_recipe(directory, recipe) else None
    return str(known["created"]) if known else _now()


def _known(directory: Path) -> dict[str, Any] | None:
    """The manifest that a directory has; None where it has none, or a damaged one."""
    try:
        found = read_json(directory / FILE)
    except DataError:
        return None
    whole = isinstance(found, dict) and {"schema_version": int, "created": str, "methods": dict}
    return found if whole and all(isinstance(found.get(key), kind) for key, kind in whole.items()) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
