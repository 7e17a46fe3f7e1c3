"""What a recipe asks to be diagnosed beside the evaluation: probe prompts, kernel similarity, Proposition 1."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from discernment.diagnosis.diagnose_types import DiagnoseOptions
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.frozen import Frozen
from discernment.kernel.kernel import KernelOptions
from discernment.prompts import PromptSet
from discernment.prompts.sources import load_sources
from discernment.runs.training_data import Sources

__all__ = ["DiagnosisPlan", "KernelPlan", "PropositionPlan"]


class _KernelChoice(Frozen):
    k: int = Field(10, ge=1, description="Output tokens of the kernel.")
    rows: Literal["shared", "own"] = Field(
        "shared",
        description="`shared`: the same k likeliest tokens for all prompts; `own`: each prompt's own.",
    )

    @property
    def kernel(self) -> KernelOptions:
        """The options of the kernel."""
        return KernelOptions(rows=self.rows, k=self.k)


class PropositionPlan(_KernelChoice):
    """Which prompts Proposition 1 is measured on, and how."""

    prompts: Sources | None = Field(
        None,
        description="Toxic, seemingly toxic and, if wanted, benign prompts; `probes` by default. Half of them fit the "
        "bound and half test it; intervals need some 70 over the three labels.",
    )


class KernelPlan(_KernelChoice):
    """Which prompts the kernel similarity of every method's model is measured on, and how."""

    prompts: Sources | None = Field(
        None,
        description="Toxic, seemingly toxic and, if wanted, benign prompts; `probes` by default.",
    )
    per_group: int = Field(16, ge=1, description="Prompts of each label whose kernel is measured.")

    @property
    def options(self) -> DiagnoseOptions:
        """The options of each method's diagnosis. The prompts are the same whatever the recipe's seed."""
        return DiagnoseOptions(kernel=self.kernel, per_group=self.per_group)


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
        None,
        description="Whether to measure the kernel similarity of every method's model: `true`, or how.",
    )
    proposition: Annotated[PropositionPlan | None, BeforeValidator(_switch)] = Field(
        None,
        description="Whether to measure Proposition 1 before and after each stage 1: `true`, or how.",
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

    def kernel_prompts(self) -> PromptSet | None:
        """Read the prompts that kernel similarity is measured on; None if it is not to be measured.

        Raises:
            DataError: If a set cannot be read, or is empty after filtering.
        """
        return self._prompts_of(self.kernel, "kernel")

    def proposition_prompts(self) -> PromptSet | None:
        """Read the prompts that Proposition 1 is measured on; None if it is not to be measured.

        Raises:
            DataError: If a set cannot be read, or is empty after filtering.
        """
        return self._prompts_of(self.proposition, "proposition")

    def _prompts_of(self, plan: KernelPlan | PropositionPlan | None, name: str) -> PromptSet | None:
        if plan is None:
            return None
        return load_sources(plan.prompts or self.probes or [], name)
