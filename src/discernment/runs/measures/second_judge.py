"""How often another judge sees a method's replies differently than the one that the rates are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from discernment.cost import StageCost
from discernment.evaluation.sample import Sample
from discernment.evaluation.second_judge import (
    FILE,
    JudgeDifference,
    judge_again,
    judge_difference,
    read_second_verdicts,
)
from discernment.files import content_hash
from discernment.judges import Judgement, JudgeSpec, check_unscored
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.measures.measure import Measure
from discernment.runs.stages import StageRunner

if TYPE_CHECKING:
    from discernment.runs.plans import EvaluationPlan
    from discernment.runs.recipe import Recipe


@dataclass(frozen=True)
class SecondJudgeMeasure(Measure):
    """A second judge's verdicts on every reply."""

    field: ClassVar[str] = "judge_differences"
    name: ClassVar[str] = "second judge"
    asks_weights: ClassVar[bool] = False
    benchmarks: Sequence[PromptSet]
    plan: EvaluationPlan
    second: JudgeSpec
    names: tuple[str, str]

    @classmethod
    def asked(cls, recipe: Recipe, benchmarks: Sequence[PromptSet]) -> Self | None:
        """Where `evaluate.second_judge` names one."""
        plan = recipe.evaluate
        if plan.second_judge is None:
            return None
        # What a judge lacks is told before anything runs.
        names = plan.judge.build().name, plan.second_judge.build().name
        return cls(benchmarks, plan, plan.second_judge, names)

    def take(
        self, policy: PolicySpec, samples: Sequence[Sample], stage: StageRunner
    ) -> list[JudgeDifference]:
        """Have them judged, and count where the two differ."""
        # Its verdicts depend on the replies, not on what the first judge says of them.
        inputs = {
            "policy": policy,
            "benchmarks": self.benchmarks,
            "options": self.plan.options_for(policy),
            "judge": self.second,
            # Not always the same where an evaluation was lost and made again.
            "replies": content_hash(
                [[*s.key, s.completion, [d.completion for d in s.further]] for s in samples]
            ),
        }
        judged = stage.look(
            "judge", judge_stage, inputs, samples=samples, unscored_limit=self.plan.unscored_limit
        )
        return [
            judge_difference(
                samples,
                read_second_verdicts(judged / FILE),
                method=stage.owner,
                judge=self.names[0],
                second_judge=self.names[1],
            )
        ]


def judge_stage(
    judge: JudgeSpec,
    out: Path,
    *,
    samples: Sequence[Sample],
    name: str,
    unscored_limit: float,
    progress: Callable[[str, int, int], None],
    **_replied: object,
) -> StageCost:
    """Judge replies; what else is given says which, so that the stage depends on it."""
    built = judge.build(out / "judgements.jsonl")
    judged = judge_again(samples, built, out, progress)
    judgements = [Judgement(row.verdict, row.unscored_reason) for row in judged]
    check_unscored(judgements, unscored_limit, f"the replies of {name}")
    usage = getattr(built, "usage", None)
    return StageCost(
        steps=len(judged),
        tokens=0,  # of the model that is evaluated
        notes={"judge": built.name} | ({"judge_usage": asdict(usage)} if usage else {}),
    )
