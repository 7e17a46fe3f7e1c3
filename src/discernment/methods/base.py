"""The base model as it is."""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.policies.policy_spec import PolicySpec


class Base(Method):
    """No training at all: where every other method starts from."""

    name: ClassVar[str] = "base"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Return the base model."""
        return base
