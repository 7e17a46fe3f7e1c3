"""What a recipe asks for beside the training: the evaluation, and what is watched and diagnosed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.evaluation.attacks import ATTACKS, LOW_RESOURCE
from discernment.evaluation.evaluate import JudgedOptions
from discernment.frozen import Frozen
from discernment.judges import JudgeSpec
from discernment.prompts import PromptSet
from discernment.prompts.sources import PromptSource, load_source, load_sources
from discernment.prompts.suites import load_suite, suites
from discernment.runs.measures.kernel import KernelPlan
from discernment.runs.proposition import PropositionPlan
from discernment.runs.training_data import Sources
from discernment.statistics.safety_levels import SAFETY_LEVELS


class Benchmark(PromptSource):
    """A set of prompts to evaluate on."""

    name: str = Field("", description="What to call it in tables; the set's name by default.")

    def load(self) -> PromptSet:
        """Read the prompts.

        Raises:
            DataError: If they cannot be read, or none is left after filtering.
        """
        return load_source(self).renamed(self.name or self.set)


class EvaluationPlan(JudgedOptions):
    """What every method is evaluated on, how, and who judges."""

    benchmarks: list[Benchmark] = Field([], description="Sets of prompts.")
    suite: str | None = Field(None, description="Named list of sets, beside `benchmarks`.")
    attacks: list[str] = Field([], description="Attacks on the toxic prompts.")
    translations: Path | None = Field(None, description="File of translations for the attack `low_resource`.")
    ability: Sources | None = Field(
        None,
        description="Benign prompts with replies, on which every method is measured beside the base model.",
    )
    tasks: list[str] = Field(
        [], description="Tasks of lm-evaluation-harness: names that it knows, or folders of task files."
    )
    tasks_limit: int | None = Field(None, ge=1, description="Most questions a task.")
    flips: int | None = Field(
        None, ge=1, description="Batch size of a second evaluation in another order, to count what flips."
    )
    second_judge: JudgeSpec | None = Field(
        None, description="Another judge of the same replies, to count how often the two differ."
    )
    safety_levels: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        list(SAFETY_LEVELS),
        description="Shares of the toxic prompts at which compliance is compared; none to leave that out.",
    )
    reference: str | None = Field(
        None,
        description="The method that the others are compared with; `stl` where it is there, else the first.",
    )

    @field_validator("suite")
    @classmethod
    def _suite_is_known(cls, suite: str | None) -> str | None:
        if suite is not None and suite not in suites():
            raise ValueError(f"there is no suite {suite!r}; choose one of {', '.join(suites())}")
        return suite

    @field_validator("attacks")
    @classmethod
    def _attacks_are_known(cls, attacks: list[str]) -> list[str]:
        for name, count in Counter(attacks).items():
            if name not in ATTACKS:
                raise ValueError(f"there is no attack {name!r}; known: {', '.join(ATTACKS)}")
            if count > 1:
                raise ValueError(f"the attack {name!r} is named twice")
        return attacks

    @field_validator("safety_levels")
    @classmethod
    def _levels_are_named_once(cls, levels: list[float]) -> list[float]:
        if len(set(levels)) < len(levels):
            raise ValueError("a safety level is named twice")
        return levels

    @field_validator("tasks")
    @classmethod
    def _tasks_are_named_once(cls, tasks: list[str]) -> list[str]:
        twice = [name for name, count in Counter(tasks).items() if count > 1]
        if twice:
            raise ValueError(f"the task {twice[0]!r} is named twice")
        return tasks

    @model_validator(mode="after")
    def _has_something_to_do(self) -> EvaluationPlan:
        if not self.benchmarks and self.suite is None:
            raise ValueError("name `benchmarks`, a `suite`, or both")
        if self.translations is not None and LOW_RESOURCE not in self.attacks:
            raise ValueError(
                f"`translations` are for the attack `{LOW_RESOURCE}`, which is not among `attacks`"
            )
        if self.tasks_limit is not None and not self.tasks:
            raise ValueError("`tasks_limit` is for `tasks`, and there are none")
        if self.flips == self.batch_size:
            raise ValueError(
                f"`flips` is the batch size of the second evaluation, and {self.flips} is `batch_size`, that of the "
                "first; choose another, such as 1"
            )
        if self.second_judge == self.judge:
            raise ValueError("`second_judge` judges as `judge` does; name another, or leave it out")
        return self

    @property
    def sets(self) -> list[Benchmark]:
        """The benchmarks of the suite, and then the others."""
        of_suite = load_suite(self.suite) if self.suite else []
        return [Benchmark(**source.model_dump(exclude_unset=True)) for source in of_suite] + self.benchmarks


def _switch(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class DiagnosisPlan(Frozen):
    """Which prompts are watched while the stages train, and what is measured of the models that come out."""

    probes: Sources | None = Field(
        None,
        description="Toxic and other prompts whose refusal and kernel are followed through the training.",
    )
    dynamics: DynamicsOptions = Field(default_factory=DynamicsOptions)
    kernel: Annotated[KernelPlan | None, BeforeValidator(_switch)] = Field(
        None, description="Whether to measure the kernel similarity of every method's model: `true`, or how."
    )
    proposition: Annotated[PropositionPlan | None, BeforeValidator(_switch)] = Field(
        None, description="Whether to measure Proposition 1 before and after each stage 1: `true`, or how."
    )

    @model_validator(mode="after")
    def _has_prompts(self) -> DiagnosisPlan:
        if self.probes is not None:
            return self
        if "dynamics" in self.model_fields_set:
            raise ValueError("`dynamics` is about `probes`, and there are none; name some")
        if self.kernel is None and self.proposition is None:
            raise ValueError("name `probes`, `kernel` or `proposition`")
        for name, plan in (("kernel", self.kernel), ("proposition", self.proposition)):
            if plan is not None and plan.prompts is None:
                raise ValueError(f"`{name}` needs prompts: name its own `prompts`, or `probes`")
        return self

    def watched_prompts(self) -> PromptSet | None:
        """Read the prompts that are watched through the training; None if there are none.

        Raises:
            DataError: If a set cannot be read, or is empty after filtering.
        """
        return load_sources(self.probes, "probes") if self.probes is not None else None

    def prompts_of(self, plan: KernelPlan | PropositionPlan, name: str) -> PromptSet:
        """Read the prompts that one of the two is measured on.

        Raises:
            DataError: If a set cannot be read, or is empty after filtering.
        """
        return load_sources(plan.prompts or self.probes or [], name)
