"""What is left of the base model's general ability in a method's policy: divergence and perplexity on replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from discernment.cost import StageCost
from discernment.evaluation.ability import measure_ability
from discernment.evaluation.results import Ability
from discernment.evaluation.sample import Sample
from discernment.files import read_json, write_json
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.progress import counting
from discernment.prompts import PromptSet
from discernment.prompts.sources import load_sources
from discernment.runs.measures.measure import Measure
from discernment.runs.stages import StageRunner

if TYPE_CHECKING:
    from discernment.runs.recipe import Recipe


@dataclass(frozen=True)
class AbilityMeasure(Measure):
    """Every policy beside the base model, on the same replies; the base model itself has a divergence of 0."""

    field: ClassVar[str] = "abilities"
    name: ClassVar[str] = "ability on given replies"
    base: PolicySpec
    prompts: PromptSet
    seed: int

    @property
    def held_out(self) -> list[PromptSet]:
        """What a policy was trained on surprises it less."""
        return [self.prompts]

    @classmethod
    def asked(cls, recipe: Recipe, benchmarks: Sequence[PromptSet]) -> Self | None:
        """Where `evaluate.ability` names sets."""
        sources = recipe.evaluate.ability
        if sources is None:
            return None
        prompts = load_sources(sources, "ability").filter(lambda p: bool(p.response), "a response")
        return cls(PolicySpec.of(recipe.model), prompts, recipe.seed)

    def take(self, policy: PolicySpec, samples: Sequence[Sample], stage: StageRunner) -> list[Ability]:
        """Nothing of the base model."""
        if policy == self.base:
            return []
        inputs = {"policy": policy, "base": self.base, "prompts": self.prompts, "seed": self.seed}
        found = read_json(stage.look("ability", ability_stage, inputs) / "ability.json")
        return [Ability.model_validate({**found, "policy": stage.owner, "base": self.base.model.model})]


def ability_stage(
    policy: PolicySpec,
    base: PolicySpec,
    prompts: PromptSet,
    seed: int,
    out: Path,
    name: str,
    progress: Callable[[str, int, int], None],
) -> StageCost:
    """Load a policy and its base model, compare them on given replies, and write `out/ability.json`."""
    loaded = Policy.load(policy, name)
    count = counting(progress, "replies compared", len(prompts))
    found = measure_ability(loaded, Policy.load(base), prompts, seed=seed, progress=count)
    write_json(out / "ability.json", found.model_dump(mode="json"))
    read = sum(len(ids) for ids in loaded.encode(prompts.asked))
    return StageCost(steps=found.prompts, tokens=read + found.tokens)
