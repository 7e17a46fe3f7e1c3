"""Directional ablation: one direction is projected out of what the layers put out (Arditi et al. 2024, arXiv 2406.11717)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor

from discernment.errors import RecipeError
from discernment.policies.rule import Rule, SteeringRule


class Ablated(SteeringRule):
    """h - strength (h . d) d at every token, for a unit direction d: its tensor `direction`, `[hidden]`."""

    name: ClassVar[str] = "ablated"

    strength: float = Field(
        1.0, description="0 changes nothing, 1 takes the direction out, 2 turns it round."
    )
    first_layer: int = Field(1, ge=1, description="The first layer whose output is changed, counted from 1.")
    last_layer: int | None = Field(None, ge=1, description="The last one; the model's last one by default.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.last_layer is not None and self.last_layer < self.first_layer:
            raise ValueError("`last_layer` lies before `first_layer`")
        return self

    def layers(self, depth: int) -> Sequence[int]:
        """From the first to the last that the options name."""
        return range(self.first_layer, (self.last_layer or depth) + 1)

    def steer(self, hidden: Tensor, layer: int) -> Tensor:
        """Take the direction out of the states."""
        direction = self.tensors["direction"].to(hidden)
        return hidden - self.strength * (hidden @ direction)[..., None] * direction

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Rule:
        """Take the direction, made a unit vector.

        Raises:
            RecipeError: If there is none, or it has no length.
        """
        direction = tensors.get("direction")
        if direction is None or not float(direction.norm()) > 0:
            raise RecipeError("The rule 'ablated' needs a tensor `direction` that is not zero.")
        return super().with_tensors({"direction": direction / direction.norm()})
