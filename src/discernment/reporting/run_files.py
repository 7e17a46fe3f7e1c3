"""What a report reads: the files of a run directory, checked."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from discernment.diagnosis.refinement_effect import PropositionResults
from discernment.errors import DataError, RunError
from discernment.evaluation.audit import RATES, AuditedRate, still_valid
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample, read_samples
from discernment.evaluation.second_judge import FILE as SECOND
from discernment.evaluation.second_judge import SecondVerdict, read_second_verdicts
from discernment.files import plain_yaml, read_json, read_json_lines
from discernment.prompts import Label
from discernment.runs.directory import RECIPE, check_one_run, check_recipe
from discernment.runs.mending import how_to_mend, what_is_wrong

Model = TypeVar("Model", bound=BaseModel)


class _Lenient(BaseModel):
    # A report must be had of runs that a newer version wrote.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Stage(_Lenient):
    """One stage of the manifest: its name, the methods that share it and what it cost."""

    name: str
    methods: list[str] = Field(default_factory=list)
    seconds: float | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None
    inputs: dict[str, Any] = Field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """The seed of its options, where it has any."""
        options = self.inputs.get("options")
        seed = options.get("seed") if isinstance(options, dict) else None
        return seed if isinstance(seed, int) else None


class Method(_Lenient):
    """One method of the manifest: its name among the installed ones, what its recipe puts it on, its stages, its options."""

    method: str | None = None
    on: str | None = None
    stages: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Lenient):
    """`manifest.json`, as far as a report needs it."""

    schema_version: Literal[1, 2] = 1
    name: str | None = None
    status: str = "complete"
    created: str | None = None
    finished: str | None = None
    discernment: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    platform: str | None = None
    base_model: str | None = None
    judge: str | None = None
    thinking: str | None = None
    date: str | None = None
    seen_in_training: dict[str, int] = Field(default_factory=dict)
    skipped_attacks: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, Stage] = Field(default_factory=dict)
    methods: dict[str, Method] = Field(default_factory=dict)

    def methods_of(self, stage_id: str) -> list[str]:
        """The methods that use a stage."""
        users = [name for name, method in self.methods.items() if stage_id in method.stages]
        return users or list(self.stages[stage_id].methods)

    def trained_last(self, method: str) -> list[str]:
        """The stages 1 and 2 of a method itself, without those of a method below it that it goes on from."""
        own: list[str] = []
        for stage_id in self.methods[method].stages:
            if stage_id not in self.stages or self.stages[stage_id].name not in ("refine", "align"):
                continue
            if own and self.stages[own[-1]].name == "align":
                own = []
            own.append(stage_id)
        return own


@dataclass(frozen=True)
class History:
    """The curve of one training stage: the methods that share it, its rows of finite numbers, and its seed."""

    methods: list[str]
    rows: list[dict[str, float]]
    seed: int | None = None

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """The steps and the values at which `key` was recorded."""
        rows = [row for row in self.rows if key in row and "step" in row]
        return [row["step"] for row in rows], [row[key] for row in rows]

    def has(self, *keys: str) -> bool:
        """Whether one of `keys` was recorded."""
        return any(self.series(key)[0] for key in keys)


class LookCost(_Lenient):
    """What a look took, and what the stage's training had taken by then without looks."""

    seconds: float
    training_seconds: float


class Look(_Lenient):
    """One row of `dynamics.jsonl`: see `diagnosis.dynamics`, as far as a report needs it."""

    step: int
    rejection: dict[Label, float]
    row_normalised: dict[Label, dict[Label, float | None]]
    cost: LookCost


@dataclass(frozen=True)
class Watch:
    """How a training stage moved the probe prompts: the methods that share it, its name and its looks in order."""

    methods: list[str]
    stage: str
    looks: list[Look]


class _Audit(RootModel[list[AuditedRate]]):
    """`audit.json`."""


@dataclass(frozen=True)
class RunFiles:
    """A run directory, read.

    Attributes:
        directory: The run directory.
        results: The numbers.
        manifest: The manifest; None where there is none.
        recipe: The text of the recipe; None where there is none.
        samples: What each method made of each prompt, for the methods whose samples are there.
        refinements: The curves of stage 1, one per stage.
        alignments: The curves of stage 2, one per stage.
        watches: The looks at the probe prompts, one per stage that was watched.
        propositions: Proposition 1 before and after each stage 1; None where it was not measured.
        second: The second judge's verdicts on the replies of each method, where there is a second judge.
        audit: The rates that people's labels correct, as far as the replies are still those that were audited.
    """

    directory: Path
    results: Results
    manifest: Manifest | None
    recipe: str | None
    samples: dict[str, list[Sample]]
    refinements: list[History]
    alignments: list[History]
    watches: list[Watch]
    propositions: PropositionResults | None
    second: dict[str, list[SecondVerdict]] = field(default_factory=dict)
    audit: Sequence[AuditedRate] = ()


def read_run(directory: Path, *, audit: bool = True) -> RunFiles:
    """Read a run directory; only `results.json` has to be there.

    Args:
        directory: The run directory.
        audit: Whether to read what people say of it; an audit, which writes that, does not ask for it.

    Raises:
        RunError: If there are no results, or a file is damaged; the message names the file and what makes it again.
    """
    check_one_run(directory)
    if not (directory / "results.json").is_file():
        raise RunError(
            f"{directory} has no results.json to report on; "
            "name a run directory whose evaluation is complete, or finish the run first."
        )
    try:
        run = _read(directory)
    except (DataError, RunError) as error:
        raise RunError(f"{what_is_wrong(error)}; {how_to_mend(directory)}.") from error
    return replace(run, audit=_read_audit(run)) if audit else run


def check_finished(run: RunFiles) -> None:
    """Make sure that what lies beside each other in a run's directory is of one and the same run of it.

    Raises:
        RunError: If the run was begun again and has not come to its end.
    """
    if run.manifest is not None and run.manifest.status != "complete":
        raise RunError(f"{run.directory} is not complete; {how_to_mend(run.directory)}.")


def recipe_content(run: RunFiles) -> dict[str, Any]:
    """What the recipe of a run says; nothing where it has none.

    Raises:
        RunError: If it is no recipe any more.
    """
    try:
        content = plain_yaml(run.recipe or "{}")
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise RunError(f"{run.directory / RECIPE} is no recipe; {how_to_mend(run.directory)}.")
    return content


def _read_audit(run: RunFiles) -> list[AuditedRate]:
    path = run.directory / RATES
    if not path.is_file():
        return []
    try:
        return still_valid(_parse(_Audit, path).root, run.samples)
    except (DataError, RunError) as error:
        command = shlex.join(["discern", "judges", "audit", str(run.directory)])
        raise RunError(
            f"{what_is_wrong(error)}; give `{command}` again, which writes it from the labels."
        ) from error


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a run directory; None where there is none.

    Raises:
        RunError: If it is damaged.
    """
    path = directory / "manifest.json"
    return _parse(Manifest, path) if path.is_file() else None


def _read(directory: Path) -> RunFiles:
    results = _parse(Results, directory / "results.json")
    recipe = _read_recipe(directory)
    manifest = read_manifest(directory)
    proposition_path = directory / "proposition.json"
    samples: dict[str, list[Sample]] = {}
    second: dict[str, list[SecondVerdict]] = {}
    curves: dict[str, list[History]] = {"refine": [], "align": []}
    watches: list[Watch] = []
    known = manifest or Manifest()
    for stage_id, stage in known.stages.items():
        if Path(stage_id).name != stage_id or stage_id == "..":
            raise RunError(
                f"{directory / 'manifest.json'} names the stage {stage_id!r}, which is not the name of a folder."
            )
        methods = [m for m in known.methods_of(stage_id) if m in results.methods]
        if stage.name in curves and methods:
            methods = [m for m in methods if m not in known.methods or stage_id in known.trained_last(m)]
            if not methods:  # the training of what they stand on
                continue
        folder = directory / "stages" / stage_id
        # Without its record the stage was taken away whole, to pass the numbers on alone.
        expected = bool(methods) and known.status == "complete" and (folder / "stage.json").is_file()
        if stage.name == "evaluate" and (expected or (folder / "samples.jsonl").is_file()):
            samples |= dict.fromkeys(methods, read_samples(folder / "samples.jsonl"))
        elif stage.name == "judge" and (expected or (folder / SECOND).is_file()):
            second |= dict.fromkeys(methods, read_second_verdicts(folder / SECOND))
        elif stage.name in curves:
            owners = methods or [stage_id]
            if (folder / "history.jsonl").is_file():
                rows = _read_history(folder / "history.jsonl")
                curves[stage.name].append(History(owners, rows, stage.seed))
            if (folder / "dynamics.jsonl").is_file():
                watches.append(Watch(owners, stage.name, _read_looks(folder / "dynamics.jsonl")))
    return RunFiles(
        directory=directory,
        results=results,
        manifest=manifest,
        recipe=recipe,
        samples={method: samples[method] for method in results.methods if method in samples},
        refinements=curves["refine"],
        alignments=curves["align"],
        watches=[watch for watch in watches if watch.looks],
        propositions=_parse(PropositionResults, proposition_path) if proposition_path.is_file() else None,
        second=second,
    )


def _read_recipe(directory: Path) -> str | None:
    path = directory / RECIPE
    if not path.is_file():
        return None
    check_recipe(directory)
    return path.read_text(encoding="utf-8", errors="replace")


def _parse(model: type[Model], path: Path) -> Model:
    try:
        return model.model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(f"{path} does not have the form of a run's file ({_first(error)}).") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "the whole file"
    return f"{where}: {first['msg']}"


def _read_history(path: Path) -> list[dict[str, float]]:
    return [
        {k: float(v) for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        for _, row in read_json_lines(path, allow_torn_end=True)
        if isinstance(row, dict)
    ]


def _read_looks(path: Path) -> list[Look]:
    looks = []
    for number, row in read_json_lines(path, allow_torn_end=True):
        try:
            looks.append(Look.model_validate(row))
        except ValidationError as error:
            raise RunError(
                f"{path}, line {number}, is not a look at probe prompts ({_first(error)})."
            ) from error
    return sorted(looks, key=lambda look: look.step)
