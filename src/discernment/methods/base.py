"""The base model as it is."""

from __future__ import annotations

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.models.model_spec import ModelSpec

__all__ = ["Base"]


class Base(Method):
    """No training at all: where every other method starts from."""

    name: ClassVar[str] = "base"

    def build(self, base: ModelSpec, materials: Materials, options: MethodOptions, stage: Stage) -> ModelSpec:
        """Return the base model."""
        return base
