"""Prompted: a model under a system message that says what to weigh (the `Prompt` baseline of Self-CD)."""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.policies.policy_spec import PolicySpec


class Prompted(Method):
    """No training: a decoding rule with one context, on the base model unless told otherwise."""

    name: ClassVar[str] = "prompted"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "base"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Put the system message before every prompt."""
        return base.with_rule(options.rule_called(self.name))
