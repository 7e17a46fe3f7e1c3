"""What a method's policy reaches in tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from discernment.cost import StageCost
from discernment.evaluation.harness import Tasks, run_tasks
from discernment.evaluation.results import TaskScore
from discernment.evaluation.sample import Sample
from discernment.files import read_json, write_json
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.measures.measure import Measure
from discernment.runs.stages import StageRunner

if TYPE_CHECKING:
    from discernment.runs.recipe import Recipe


@dataclass(frozen=True)
class TasksMeasure(Measure):
    """Every policy on the same tasks."""

    field: ClassVar[str] = "tasks"
    name: ClassVar[str] = "score in tasks"
    tasks: Tasks
    limit: int | None
    seed: int

    @classmethod
    def asked(cls, recipe: Recipe, benchmarks: Sequence[PromptSet]) -> Self | None:
        """Where `evaluate.tasks` names any."""
        if not recipe.evaluate.tasks:
            return None
        tasks = Tasks(tuple(recipe.evaluate.tasks))
        tasks.check()
        return cls(tasks, recipe.evaluate.tasks_limit, recipe.seed)

    def take(self, policy: PolicySpec, samples: Sequence[Sample], stage: StageRunner) -> list[TaskScore]:
        """Every metric of every task."""
        inputs = {"policy": policy, "tasks": self.tasks, "limit": self.limit, "seed": self.seed}
        found = read_json(stage.look("tasks", tasks_stage, inputs) / "tasks.json")
        return [TaskScore.model_validate({**row, "policy": stage.owner}) for row in found]


def tasks_stage(
    policy: PolicySpec,
    tasks: Tasks,
    limit: int | None,
    seed: int,
    out: Path,
    name: str,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a policy, run tasks of the harness, which shows bars of its own, and write `out/tasks.json`."""
    scores = run_tasks(Policy.load(policy, name), tasks.names, limit=limit, seed=seed)
    write_json(out / "tasks.json", [score.model_dump(mode="json") for score in scores])
    questions = {score.task: score.questions for score in scores}
    return StageCost(steps=sum(questions.values()), tokens=0)
