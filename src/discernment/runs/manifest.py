"""The manifest of a run: what was done with what, and what came out, for the report and for other verbs."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import discernment
from discernment.errors import DataError, RunError
from discernment.files import read_json, write_json
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec
from discernment.runs.preparation import Prepared
from discernment.runs.recipe import MethodEntry, Recipe
from discernment.runs.stages import StageRunner

VERSION = 2
"""Of the manifest and of the stages that lie beside it: those of version 1 are named otherwise."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pytorch-metric-learning")


def check_version(directory: Path) -> None:
    """Make sure that a directory holds no run of another version, whose stages would not be found again.

    Raises:
        RunError: If it does.
    """
    file = directory / "manifest.json"
    if file.is_file() and read_json(file).get("schema_version") != VERSION:
        raise RunError(
            f"{directory} holds a run of another version of discernment, which this one can report on, compare and "
            "talk to but not go on with; name another directory with --out."
        )


def policy_of(directory: Path, method: str) -> PolicySpec:
    """The policy that a method of a run left; also of a run of version 1, which named a model.

    Raises:
        DataError: If the run has no such method, or its manifest cannot be read.
    """
    methods = read_json(directory / "manifest.json")["methods"]
    if method not in methods:
        raise DataError(f"The run {directory} has no method {method!r}; it has {', '.join(methods)}.")
    entry = methods[method]
    if "policy" in entry:
        return PolicySpec.model_validate(entry["policy"]).in_folder(directory)
    found = PolicySpec.of(ModelSpec.model_validate(entry["model"]))
    path = found.model.model  # relative to the run where it lies in it
    return found.with_model(model=str(directory / path)) if path.startswith("stages/") else found


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
            "policy": policy.relative_to(self.directory).model_dump(mode="json", exclude_defaults=True),
            "options": {
                "refine": options.refine and options.refine.model_dump(mode="json"),
                "align": options.align.model_dump(mode="json"),
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
                    **record.model_dump(mode="json"),
                    "methods": list(dict.fromkeys(self.stage.owners[key])),
                }
                for key, record in self.stage.records.items()
            },
            "methods": {
                label: {**method, "stages": self.stage.stages_of(label)}
                for label, method in self.methods.items()
            },
        }
        write_json(self.directory / "manifest.json", content)


def _created(directory: Path, recipe: Recipe) -> str:
    """When the run began: kept from an earlier call with the same recipe."""
    manifest, written = directory / "manifest.json", directory / "recipe.yaml"
    if manifest.is_file() and written.is_file() and written.read_text(encoding="utf-8") == recipe.to_yaml():
        return str(read_json(manifest)["created"])
    return _now()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
