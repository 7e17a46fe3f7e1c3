"""Running a recipe: build every method, evaluate it, compare, report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import discernment
from discernment.cost import StageCost
from discernment.errors import RecipeError
from discernment.evaluation.attack_drop import attack_drop
from discernment.evaluation.attacked import attack_benchmarks
from discernment.evaluation.attacks import with_completion_prefix
from discernment.evaluation.evaluate import EvaluateOptions, check_samples, evaluate
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample, read_samples
from discernment.evaluation.summary import summarize
from discernment.files import read_json, write_json, write_text
from discernment.judges import JudgeSpec
from discernment.methods.method import Materials, find_method
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet
from discernment.prompts.words import normalise
from discernment.runs.diagnosis import check_refinements
from discernment.runs.directory import claim, forget_other_recipe
from discernment.runs.measures import Measures
from discernment.runs.recipe import Recipe
from discernment.runs.rehearsal import rehearse
from discernment.runs.stages import Reporter, StageRunner

__all__ = ["RunSummary", "evaluate_model", "run_recipe"]

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pytorch-metric-learning")


class RunSummary(NamedTuple):
    """What a run left.

    Attributes:
        directory: The run's directory.
        results: The numbers, as in `results.json`.
        stages_run: Stages that had to be done; 0 means that everything was there already.
        seen_in_training: Evaluation prompts that also are training prompts, by benchmark.
        skipped_attacks: Why an attack of the recipe was not tried, by its name.
        samples: What each method made of the benchmarks.
    """

    directory: Path
    results: Results
    stages_run: int
    seen_in_training: dict[str, int]
    skipped_attacks: dict[str, str]
    samples: dict[str, list[Sample]]


class Quiet:
    """A reporter that says nothing."""

    def stage(self, name: str, owner: str, *, reused: bool) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, of: int) -> None:
        """Say nothing."""


def run_recipe(recipe: Recipe, directory: Path, reporter: Reporter | None = None) -> RunSummary:
    """Do all that `recipe` asks for and leave it in `directory`.

    Stages that the directory holds already are not done again; an interrupted run goes on where it was. The
    directory gets `recipe.yaml`, `manifest.json`, `results.json`, one folder a stage, and `proposition.json` if the
    recipe asks for it and a method has a stage 1.

    Args:
        recipe: What to do.
        directory: The run's directory.
        reporter: Hears what is going on.

    Raises:
        DiscernmentError: If the recipe, the data or a model is wrong, or the directory is in use.
    """
    if recipe.seeds:
        raise RecipeError("The recipe has several `seeds`; run it with `run_seeds`, as `discern run` does.")
    with claim(directory, "run"):
        return _run(recipe, directory, reporter or Quiet())


def evaluate_model(
    model: ModelSpec,
    benchmarks: list[PromptSet],
    options: EvaluateOptions,
    judge: JudgeSpec,
    out: Path,
    *,
    name: str | None = None,
    reply_prefix: str | None = None,
    unscored_limit: float = 1.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> StageCost:
    """Load a model and evaluate it; see `evaluation.evaluate`.

    The judgements of an LLM judge are kept in `out/judgements.jsonl`.

    Args:
        model: The model.
        benchmarks: Prompt sets; their provenance names them.
        options: How to generate.
        judge: Who judges.
        out: A directory.
        name: What messages call the policy; the model's name by default.
        reply_prefix: What every reply is begun with.
        unscored_limit: Highest share of a benchmark's replies that the judge may leave unscored.
        progress: Called with what is being done, how many prompts are done, and how many there are.

    Raises:
        DiscernmentError: If the model or the judge cannot be had, or it leaves too much unscored.
    """
    judges = judge.build(out / "judgements.jsonl")
    policy = Policy.load(model, name)
    if reply_prefix is not None:
        policy = with_completion_prefix(policy, reply_prefix)
    return evaluate(
        policy, benchmarks, options, out, judge=judges, unscored_limit=unscored_limit, progress=progress
    )


def _run(recipe: Recipe, directory: Path, reporter: Reporter) -> RunSummary:
    started = _started(directory, recipe)
    materials = recipe.materials()
    asked = recipe.evaluate
    benchmarks = [b.load() for b in asked.sets]
    attacked, skipped = attack_benchmarks(asked.attacks, benchmarks, asked.translations)
    plan = recipe.diagnose.proposition if recipe.diagnose else None
    theory = recipe.diagnose.proposition_prompts() if recipe.diagnose else None
    kernel = recipe.diagnose.kernel_prompts() if recipe.diagnose else None
    ability = asked.ability_prompts()
    seen = _seen_in_training(materials.values(), benchmarks if ability is None else [*benchmarks, ability])
    rehearse(recipe, materials)
    forget_other_recipe(directory, recipe)
    write_text(directory / "recipe.yaml", recipe.to_yaml())
    stage = StageRunner(directory / "stages", reporter)
    judge = asked.judge.build().name
    samples: dict[str, list[Sample]] = {}
    under_attack: dict[tuple[str, str], list[Sample]] = {}
    measures = Measures(recipe, benchmarks, kernel, ability, stage)
    measured: dict[str, list[Any]] = {}
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
            "judge": judge,
            "seen_in_training": seen,
            "skipped_attacks": skipped,
            "stages": {
                key: {**record.model_dump(mode="json"), "methods": list(dict.fromkeys(stage.owners[key]))}
                for key, record in stage.records.items()
            },
            "methods": methods,
        }

    def evaluated(
        name: str, model: ModelSpec, sets: list[PromptSet], options: EvaluateOptions, **more: Any
    ) -> list[Sample]:
        inputs = {"model": model, "benchmarks": sets, "options": options, "judge": asked.judge, **more}
        extra = {
            "name": stage.owner,
            "unscored_limit": asked.unscored_limit,
            "progress": reporter.progress,
        }
        found = read_samples(stage.run(name, evaluate_model, inputs, extra) / "samples.jsonl")
        check_samples(found, asked.unscored_limit, stage.owner)  # which may have been higher the last time
        return found

    for entry in recipe.methods:
        stage.owner = entry.label
        options = recipe.options(entry)
        model = find_method(entry.method).build(recipe.model, materials[entry.label], options, stage)
        samples[entry.label] = evaluated("evaluate", model, benchmarks, asked.options)
        for under in attacked:
            # A stage for each attack: another attack in the recipe is no reason to do the others again.
            prefix = {} if under.reply_prefix is None else {"reply_prefix": under.reply_prefix}
            under_attack[under.attack, entry.label] = evaluated(
                "attack", model, under.benchmarks, _verdicts_only(asked.options), **prefix
            )
        for field, rows in measures.take(model, samples[entry.label]).items():
            measured.setdefault(field, []).extend(rows)
        methods[entry.label] = {
            "method": entry.method,
            "stages": stage.stages_of(entry.label),
            "model": _movable(model, directory),
            "options": {
                "refine": options.refine and options.refine.model_dump(mode="json"),
                "align": options.align.model_dump(mode="json"),
            },
        }
        write_json(directory / "manifest.json", manifest("running"))
    results = summarize(samples, base_model=recipe.model.model, reference=recipe.reference, seed=recipe.seed)
    drops = (
        attack_drop(samples[method], under_attack[under.attack, method], method=method, attack=under.attack)
        for under in attacked
        for method in samples
    )
    results = results.model_copy(update={"attack_drops": [drop for drop in drops if drop], **measured})
    write_json(directory / "results.json", results.model_dump(mode="json"))
    if plan is not None and theory is not None:
        found = check_refinements(recipe.model, theory, plan, stage, recipe.seed)
        if found.refinements:
            write_json(directory / "proposition.json", found.model_dump(mode="json"))
        for label, method in methods.items():
            method["stages"] = stage.stages_of(label)
    write_json(directory / "manifest.json", manifest("complete"))
    return RunSummary(directory, results, stage.ran, seen, skipped, samples)


def _verdicts_only(options: EvaluateOptions) -> EvaluateOptions:
    return EvaluateOptions(
        max_new_tokens=options.max_new_tokens, batch_size=options.batch_size, rejection=False
    )


def _movable(model: ModelSpec, directory: Path) -> dict[str, Any]:
    """The model as the manifest names it: relative to the run's directory where it lies in there."""
    path = Path(model.model)
    if path.is_relative_to(directory):
        model = model.model_copy(update={"model": path.relative_to(directory).as_posix()})
    return model.model_dump(mode="json", exclude_defaults=True)


def _started(directory: Path, recipe: Recipe) -> str:
    """When the run began: kept from an earlier call with the same recipe."""
    manifest, written = directory / "manifest.json", directory / "recipe.yaml"
    if manifest.is_file() and written.is_file() and written.read_text(encoding="utf-8") == recipe.to_yaml():
        return str(read_json(manifest)["created"])
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seen_in_training(materials: Iterable[Materials], benchmarks: Sequence[PromptSet]) -> dict[str, int]:
    """How many prompts of each benchmark a training stage may see; benchmarks without any are left out."""
    names = Materials.__dataclass_fields__.keys() - {"probes"}  # which are looked at only
    # Methods share most sets; each is read once.
    trained = {id(s): s for own in materials for name in names if (s := getattr(own, name)) is not None}
    found: dict[str, int] = {}
    training = {normalise(p.text) for s in trained.values() for p in s}
    for benchmark in benchmarks:
        count = sum(normalise(p.text) in training for p in benchmark)
        if count:
            found[benchmark.provenance.name] = count
    return found
