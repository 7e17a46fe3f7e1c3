"""What a run measures of each method beside its verdicts: kernel similarity, ability, what flips with the batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discernment.cost import StageCost
from discernment.diagnosis.diagnose_types import Diagnosis
from discernment.evaluation.ability import measure_ability
from discernment.evaluation.evaluate import EvaluateOptions
from discernment.evaluation.flips import evaluate_again, find_flips
from discernment.evaluation.harness import Tasks, run_tasks
from discernment.evaluation.results import Ability, FlipCount, KernelSimilarity, TaskScore
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import read_json, write_json
from discernment.judges import JudgeSpec
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet
from discernment.runs.diagnosis import diagnose_stage
from discernment.runs.recipe import Recipe
from discernment.runs.stages import StageRunner

__all__ = ["Measures", "ability_stage", "flips_stage", "tasks_stage"]


@dataclass(frozen=True)
class Measures:
    """Takes the measures that a recipe asks for; one stage a measure and method.

    Attributes:
        recipe: The recipe.
        benchmarks: Its benchmarks.
        kernel: Prompts for the kernel similarity; None if it is not to be measured.
        ability: Prompts with replies for the divergence from the base model and the perplexity; None for neither.
        stage: Runs the stages, in the name of its present owner.
    """

    recipe: Recipe
    benchmarks: Sequence[PromptSet]
    kernel: PromptSet | None
    ability: PromptSet | None
    stage: StageRunner

    def take(self, model: ModelSpec, first: Sequence[Sample]) -> dict[str, list[Any]]:
        """Measure one method.

        Args:
            model: The method's model.
            first: The samples of its evaluation.

        Returns:
            Rows for the fields of `Results`, by field.

        Raises:
            DiscernmentError: If the model or the judge cannot be had, or a task cannot be run.
        """
        return {
            "kernels": list(self._kernels(model)),
            "abilities": list(self._ability(model)),
            "tasks": list(self._tasks(model)),
            "flips": list(self._flips(model, first)),
        }

    def _kernels(self, model: ModelSpec) -> list[KernelSimilarity]:
        asked = self.recipe.diagnose
        if asked is None or asked.kernel is None or self.kernel is None:
            return []
        inputs = {
            # The kernel's differences drown in the rounding of less.
            "model": model.model_copy(update={"dtype": "float32"}),
            "prompts": self.kernel,
            "options": asked.kernel.options,
        }
        found = Diagnosis.model_validate(
            read_json(self._run("diagnose", diagnose_stage, inputs) / "diagnosis.json")
        )
        return [
            KernelSimilarity(
                policy=self.stage.owner, label=row.row, **row.model_dump(exclude={"row", "column"})
            )
            for row in found.steps_on_toxic
        ]

    def _ability(self, model: ModelSpec) -> list[Ability]:
        base = self.recipe.model
        if self.ability is None or model == base:  # which has a divergence of 0 from itself
            return []
        inputs = {"model": model, "base": base, "prompts": self.ability, "seed": self.recipe.seed}
        found = read_json(self._run("ability", ability_stage, inputs) / "ability.json")
        return [Ability.model_validate({**found, "policy": self.stage.owner, "base": base.model})]

    def _tasks(self, model: ModelSpec) -> list[TaskScore]:
        asked = self.recipe.evaluate
        if not asked.tasks:
            return []
        inputs = {
            "model": model,
            "tasks": Tasks(tuple(asked.tasks)),
            "limit": asked.tasks_limit,
            "seed": self.recipe.seed,
        }
        found = read_json(self._run("tasks", tasks_stage, inputs) / "tasks.json")
        return [TaskScore.model_validate({**row, "policy": self.stage.owner}) for row in found]

    def _flips(self, model: ModelSpec, first: Sequence[Sample]) -> list[FlipCount]:
        asked = self.recipe.evaluate
        if asked.flips is None:
            return []
        inputs = {
            "model": model,
            "benchmarks": self.benchmarks,
            "options": asked.options,
            "judge": asked.judge,
            "batch_size": asked.flips,
        }
        extra = {"first": first, "unscored_limit": asked.unscored_limit}
        found = find_flips(
            first, read_samples(self._run("flips", flips_stage, inputs, extra) / "samples.jsonl")
        )
        return [
            FlipCount(
                method=self.stage.owner,
                batch_size=asked.batch_size,
                other_batch_size=asked.flips,
                prompts=found.prompts,
                changed=found.changed,
                flipped=len(found.flips),
                rejection_change=found.rejection_change,
            )
        ]

    def _run(
        self,
        name: str,
        work: Callable[..., StageCost],
        inputs: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        more = {"name": self.stage.owner, "progress": self.stage.reporter.progress, **(extra or {})}
        return self.stage.run(name, work, inputs, more)


def ability_stage(
    model: ModelSpec,
    base: ModelSpec,
    prompts: PromptSet,
    seed: int,
    out: Path,
    name: str,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a model and its base model, compare them on given replies, and write `out/ability.json`."""
    policy = Policy.load(model, name)
    done = 0

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress("replies compared", done, len(prompts))

    found = measure_ability(policy, Policy.load(base), prompts, seed=seed, progress=tell)
    write_json(out / "ability.json", found.model_dump(mode="json"))
    read = sum(len(ids) for ids in policy.encode(prompts.texts))
    return StageCost(steps=found.prompts, tokens=read + found.tokens)


def tasks_stage(
    model: ModelSpec,
    tasks: Tasks,
    limit: int | None,
    seed: int,
    out: Path,
    name: str,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a model, run tasks of lm-evaluation-harness, which shows bars of its own, and write `out/tasks.json`."""
    scores = run_tasks(Policy.load(model, name), tasks.names, limit=limit, seed=seed)
    write_json(out / "tasks.json", [score.model_dump(mode="json") for score in scores])
    questions = {score.task: score.questions for score in scores}
    return StageCost(steps=sum(questions.values()), tokens=0)


def flips_stage(
    model: ModelSpec,
    benchmarks: Sequence[PromptSet],
    options: EvaluateOptions,
    judge: JudgeSpec,
    batch_size: int,
    out: Path,
    *,
    first: Sequence[Sample],
    name: str,
    unscored_limit: float,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a model and evaluate it again in batches of another size; see `evaluation.flips`.

    That `options` are those of the first evaluation makes the stage depend on it.
    """
    return evaluate_again(
        Policy.load(model, name),
        benchmarks,
        options.model_copy(update={"batch_size": batch_size}),
        out,
        first,
        judge=judge.build(out / "judgements.jsonl"),
        unscored_limit=unscored_limit,
        progress=progress,
    )
