"""What all measures have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from discernment.evaluation.sample import Sample
from discernment.frozen import Frozen
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.stages import StageRunner

if TYPE_CHECKING:
    from discernment.runs.recipe import Recipe


class Measure(ABC):
    """One thing that is measured of every method's policy, each time in a stage of its own.

    Attributes:
        field: The field of `Results` that its rows stand in.
        name: What it is called where it is left out.
        asks_weights: Whether it needs the policy's weights, so that one behind an endpoint cannot have it.
    """

    field: ClassVar[str]
    name: ClassVar[str]
    asks_weights: ClassVar[bool] = True

    @property
    def held_out(self) -> Sequence[PromptSet]:
        """Prompts that no training stage should have seen."""
        return ()

    @classmethod
    @abstractmethod
    def asked(cls, recipe: Recipe, benchmarks: Sequence[PromptSet]) -> Self | None:
        """The measure with its prompts, ready to be taken; None if the recipe does not ask for it.

        Args:
            recipe: The recipe.
            benchmarks: Its benchmarks.

        Raises:
            DiscernmentError: If a set cannot be read, or something that it needs is missing.
        """

    @abstractmethod
    def take(self, policy: PolicySpec, samples: Sequence[Sample], stage: StageRunner) -> Sequence[Frozen]:
        """Measure one method.

        Args:
            policy: The method's policy.
            samples: The samples of its evaluation.
            stage: Runs the stage, in the name of its present owner.

        Returns:
            The rows for the results.

        Raises:
            DiscernmentError: If the policy or a judge cannot be had, or does not allow the measure.
        """
