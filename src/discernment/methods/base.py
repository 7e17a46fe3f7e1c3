"""The base model as it is."""

from typing import ClassVar

from pydantic import Field, field_validator

from discernment.frozen import Frozen
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.models.model_spec import BEHIND, ModelSpec
from discernment.policies.policy_spec import PolicySpec


class BaseOptions(Frozen):
    """Options of `base`."""

    model: ModelSpec | None = Field(
        None, description="A model behind an endpoint to evaluate beside the recipe's, as it is."
    )

    @field_validator("model")
    @classmethod
    def _is_served(cls, model: ModelSpec | None) -> ModelSpec | None:
        if model is not None and not model.is_served:
            raise ValueError(
                f"{model.model} is not behind an endpoint (`{BEHIND}NAME@URL`); a recipe has one model with weights, under "
                "`model`"
            )
        return model


class Base(Method):
    """No training at all: where every other method starts from."""

    name: ClassVar[str] = "base"
    options_type: ClassVar[type[Frozen]] = BaseOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Return the base model, or the one behind an endpoint."""
        model: ModelSpec | None = options.own.model if isinstance(options.own, BaseOptions) else None
        return base if model is None else PolicySpec.of(model)
