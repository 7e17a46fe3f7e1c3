"""What changes in a method's replies and verdicts when it is evaluated again, in batches of another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from discernment.cost import StageCost
from discernment.evaluation.evaluate import EvaluateOptions
from discernment.evaluation.flips import FlipCount, evaluate_again, find_flips
from discernment.evaluation.sample import Sample, read_samples
from discernment.judges import JudgeSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.measures.measure import Measure
from discernment.runs.stages import StageRunner

if TYPE_CHECKING:
    from discernment.runs.plans import EvaluationPlan
    from discernment.runs.recipe import Recipe


@dataclass(frozen=True)
class FlipsMeasure(Measure):
    """A second evaluation of every policy."""

    field: ClassVar[str] = "flips"
    name: ClassVar[str] = "count of flips"
    benchmarks: Sequence[PromptSet]
    plan: EvaluationPlan
    batch_size: int

    @classmethod
    def asked(cls, recipe: Recipe, benchmarks: Sequence[PromptSet]) -> Self | None:
        """Where `evaluate.flips` gives a batch size."""
        plan = recipe.evaluate
        return None if plan.flips is None else cls(benchmarks, plan, plan.flips)

    def take(self, policy: PolicySpec, samples: Sequence[Sample], stage: StageRunner) -> list[FlipCount]:
        """Count what flipped."""
        inputs = {
            "policy": policy,
            "benchmarks": self.benchmarks,
            "options": self.plan.options_for(policy),
            "judge": self.plan.judge,
            "batch_size": self.batch_size,
        }
        again = stage.look(
            "flips", flips_stage, inputs, first=samples, unscored_limit=self.plan.unscored_limit
        )
        found = find_flips(samples, read_samples(again / "samples.jsonl"))
        return [
            FlipCount(
                method=stage.owner,
                batch_size=self.plan.batch_size,
                other_batch_size=self.batch_size,
                prompts=found.prompts,
                changed=found.changed,
                flipped=len(found.flips),
                rejection_change=found.rejection_change,
            )
        ]


def flips_stage(
    policy: PolicySpec,
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
    """Load a policy and evaluate it again in batches of another size; see `evaluation.flips`.

    That `options` are those of the first evaluation makes the stage depend on it.
    """
    return evaluate_again(
        Policy.load(policy, name),
        benchmarks,
        options.model_copy(update={"batch_size": batch_size}),
        out,
        first,
        judge=judge.build(out / "judgements.jsonl"),
        unscored_limit=unscored_limit,
        progress=progress,
    )
