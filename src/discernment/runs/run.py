"""Running a recipe: build every method, evaluate it, compare, report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

import discernment
from discernment.errors import RunError
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.judges import Judge, KeywordJudge
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample, read_samples
from discernment.evaluation.summary import summarize
from discernment.files import read_json, write_json, write_text
from discernment.methods.method import Materials, find_method
from discernment.models.policy import Policy
from discernment.models.spec import ModelSpec
from discernment.prompts import PromptSet
from discernment.prompts.words import normalise
from discernment.runs.recipe import Recipe
from discernment.runs.rehearsal import rehearse
from discernment.runs.stages import Reporter, StageRunner
from discernment.training import StageCost

__all__ = ["RunSummary", "evaluate_model", "run_recipe"]

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pytorch-metric-learning")


class RunSummary(NamedTuple):
    """What a run left.

    Attributes:
        directory: The run's directory.
        results: The numbers, as in `results.json`.
        stages_run: Stages that had to be done; 0 means that everything was there already.
        seen_in_training: Evaluation prompts that also are training prompts, by benchmark.
    """

    directory: Path
    results: Results
    stages_run: int
    seen_in_training: dict[str, int]


class Quiet:
    """A reporter that says nothing."""

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Say nothing."""


def run_recipe(recipe: Recipe, directory: Path, reporter: Reporter | None = None) -> RunSummary:
    """Do all that `recipe` asks for and leave it in `directory`.

    Stages that the directory holds already are not done again; an interrupted run goes on where it was. The
    directory gets `recipe.yaml`, `manifest.json`, `results.json` and one folder a stage.

    Args:
        recipe: What to do.
        directory: The run's directory.
        reporter: Hears what is going on.

    Raises:
        DiscernmentError: If the recipe, the data or a model is wrong, or the directory is in use.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"The run directory {directory} cannot be made ({error.strerror}); name another."
        ) from error
    lock = FileLock(directory / "run.lock", timeout=0)
    try:
        with lock:
            return _run(recipe, directory, reporter or Quiet())
    except Timeout:
        raise RunError(
            f"The run directory {directory} is in use by another process; wait for it or name another."
        ) from None


def evaluate_model(
    model: ModelSpec,
    benchmarks: list[PromptSet],
    options: EvaluateOptions,
    judge: Judge,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> StageCost:
    """Load a model and evaluate it; see `evaluation.evaluate`."""
    return evaluate(Policy.load(model), benchmarks, options, out, judge=judge, progress=progress)


def _run(recipe: Recipe, directory: Path, reporter: Reporter) -> RunSummary:
    started = _started(directory, recipe)
    materials = recipe.data.load(recipe.seed)
    benchmarks = [b.load() for b in recipe.evaluate.benchmarks]
    seen = _seen_in_training(materials, benchmarks)
    rehearse(recipe, materials)
    _forget_other_recipe(directory, recipe)
    write_text(directory / "recipe.yaml", recipe.to_yaml())
    stage = StageRunner(directory / "stages", reporter)
    judge = KeywordJudge()
    samples: dict[str, list[Sample]] = {}
    methods: dict[str, Any] = {}

    def manifest(status: str) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "name": recipe.name,
            "status": status,
            "created": started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds") if status == "complete" else None,
            "discernment": discernment.__version__,
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "base_model": recipe.model.model,
            "judge": judge.name,
            "seen_in_training": seen,
            "stages": {
                key: {**record.model_dump(mode="json"), "methods": list(dict.fromkeys(stage.owners[key]))}
                for key, record in stage.records.items()
            },
            "methods": methods,
        }

    for entry in recipe.methods:
        stage.owner = entry.label
        before = {key: len(owners) for key, owners in stage.owners.items()}
        options = recipe.options(entry)
        model = find_method(entry.method).build(recipe.model, materials, options, stage)
        evaluation = stage.run(
            "evaluate",
            evaluate_model,
            {"model": model, "benchmarks": benchmarks, "options": recipe.evaluate.options, "judge": judge},
            {"progress": reporter.progress},
        )
        samples[entry.label] = read_samples(evaluation / "samples.jsonl")
        used = [key for key, owners in stage.owners.items() if len(owners) > before.get(key, 0)]
        methods[entry.label] = {
            "method": entry.method,
            "stages": used,
            "model": _movable(model, directory),
            "options": {
                "refine": options.refine and options.refine.model_dump(mode="json"),
                "align": options.align.model_dump(mode="json"),
            },
        }
        write_json(directory / "manifest.json", manifest("running"))
    results = summarize(samples, base_model=recipe.model.model, reference=recipe.reference, seed=recipe.seed)
    write_json(directory / "results.json", results.model_dump(mode="json"))
    write_json(directory / "manifest.json", manifest("complete"))
    return RunSummary(directory, results, stage.ran, seen)


def _movable(model: ModelSpec, directory: Path) -> dict[str, Any]:
    """The model as the manifest names it: relative to the run's directory where it lies in there."""
    path = Path(model.model)
    if path.is_relative_to(directory):
        model = model.model_copy(update={"model": path.relative_to(directory).as_posix()})
    return model.model_dump(mode="json", exclude_defaults=True)


def _forget_other_recipe(directory: Path, recipe: Recipe) -> None:
    """Results of another recipe must not lie beside this one's stages."""
    written = directory / "recipe.yaml"
    if written.is_file() and written.read_text(encoding="utf-8") != recipe.to_yaml():
        for name in ("results.json", "report.html"):
            (directory / name).unlink(missing_ok=True)


def _started(directory: Path, recipe: Recipe) -> str:
    """When the run began: kept from an earlier call with the same recipe."""
    manifest, written = directory / "manifest.json", directory / "recipe.yaml"
    if manifest.is_file() and written.is_file() and written.read_text(encoding="utf-8") == recipe.to_yaml():
        return str(read_json(manifest)["created"])
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seen_in_training(materials: Materials, benchmarks: Sequence[PromptSet]) -> dict[str, int]:
    """How many prompts of each benchmark a training stage may see; benchmarks without any are left out."""
    trained = [s for name in Materials.__dataclass_fields__ if (s := getattr(materials, name)) is not None]
    found: dict[str, int] = {}
    training = {normalise(p.text) for s in trained for p in s}
    for benchmark in benchmarks:
        count = sum(normalise(p.text) in training for p in benchmark)
        if count:
            found[benchmark.provenance.name] = count
    return found
