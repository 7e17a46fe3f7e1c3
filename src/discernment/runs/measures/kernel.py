"""Kernel similarity of a method's policy: how far a step on toxic prompts moves the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.diagnosis import DiagnoseOptions, Diagnosis, diagnose
from discernment.diagnosis.draw import check_prompts
from discernment.errors import ModelError
from discernment.evaluation.results import KernelSimilarity
from discernment.evaluation.sample import Sample
from discernment.files import read_json, write_json
from discernment.frozen import Frozen
from discernment.kernel.kernel import KernelOptions
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.measures.measure import Measure
from discernment.runs.stages import StageRunner
from discernment.runs.training_data import Sources

if TYPE_CHECKING:
    from discernment.runs.recipe import Recipe


class KernelChoice(Frozen):
    """Which kernel, as recipes say it."""

    k: int = Field(10, ge=1, description="Output tokens of the kernel.")
    rows: Literal["shared", "own"] = Field(
        "shared",
        description="`shared`: the same k likeliest tokens for all prompts; `own`: each prompt's own.",
    )

    @property
    def kernel(self) -> KernelOptions:
        """The options of the kernel."""
        return KernelOptions(rows=self.rows, k=self.k)


class KernelPlan(KernelChoice):
    """Which prompts the kernel similarity of every method's policy is measured on, and how."""

    prompts: Sources | None = Field(
        None, description="Toxic, seemingly toxic and, if wanted, benign prompts; `probes` by default."
    )
    per_group: int = Field(16, ge=1, description="Prompts of each label whose kernel is measured.")

    @property
    def options(self) -> DiagnoseOptions:
        """The options of each method's diagnosis. The prompts are the same whatever the recipe's seed."""
        return DiagnoseOptions(kernel=self.kernel, per_group=self.per_group)


@dataclass(frozen=True)
class KernelMeasure(Measure):
    """A diagnosis of every policy on the same prompts."""

    field: ClassVar[str] = "kernels"
    name: ClassVar[str] = "kernel similarity"
    prompts: PromptSet
    options: DiagnoseOptions

    @classmethod
    def asked(cls, recipe: Recipe, benchmarks: Sequence[PromptSet]) -> Self | None:
        """Where `diagnose.kernel` is set; quantised weights are refused whatever `diagnose` asks for."""
        plan = recipe.diagnose
        if plan is None:
            return None
        # The kernel is in all that `diagnose` asks for: what is watched in training, and Proposition 1.
        check_kernel(PolicySpec.of(recipe.model), KernelOptions())
        if plan.kernel is None:
            return None
        prompts = plan.prompts_of(plan.kernel, "kernel")
        check_prompts(prompts)
        return cls(prompts, plan.kernel.options)

    def take(
        self, policy: PolicySpec, samples: Sequence[Sample], stage: StageRunner
    ) -> list[KernelSimilarity]:
        """In float32 whatever the policy speaks in: the kernel's differences drown in the rounding of less."""
        inputs = {
            "policy": policy.with_model(dtype="float32"),
            "prompts": self.prompts,
            "options": self.options,
        }
        found = read_json(stage.look("diagnose", diagnose_stage, inputs) / "diagnosis.json")
        return [
            KernelSimilarity(policy=stage.owner, label=row.row, **row.model_dump(exclude={"row", "column"}))
            for row in Diagnosis.model_validate(found).steps_on_toxic
        ]


def check_kernel(policy: PolicySpec, options: KernelOptions) -> None:
    """Whether the kernel of a policy that is not loaded yet can be measured, as far as its name says it.

    Raises:
        ModelError: If its weights will be quantised, or adapters are asked for and there will be none beside them.
    """
    quantised = policy.model.quantization is not None
    if options.parameters == "all" and quantised:
        raise ModelError(
            f"The weights of {policy.model.model} would be quantised, so that they have no gradients for the kernel; leave "
            "`quantization` out, or measure no kernel."
        )
    if options.parameters == "lora" and not (quantised and policy.adapters):
        raise ModelError(
            "`parameters: lora` needs adapters beside the weights, and they are merged when a model is loaded, unless its "
            "weights are quantised; leave it out, or measure a model of your own from Python."
        )


def diagnose_stage(
    policy: PolicySpec,
    prompts: PromptSet,
    options: DiagnoseOptions,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
    name: str | None = None,
    command: Callable[[int], str] | None = None,
) -> StageCost:
    """Load a policy and write `out/diagnosis.json`; see `diagnosis.diagnose`.

    Args:
        policy: The policy.
        prompts: What it is measured on.
        options: What to measure.
        out: A directory.
        progress: Called with what is being done, how much of it is done, and how much there is.
        name: What to call the policy; the model's name by default.
        command: Gives the command that refines the policy up to a layer; by its name by default.
    """
    loaded = Policy.load(policy, name)
    found = diagnose(loaded, prompts, options, out, progress)
    if command is not None:
        found = found.model_copy(update={"command": command(found.recommendation.layer)})
    write_json(out / "diagnosis.json", found.model_dump(mode="json"))
    tokens = sum(len(sequence) for sequence in loaded.encode(prompts.asked))
    return StageCost(steps=len(prompts), tokens=tokens)
