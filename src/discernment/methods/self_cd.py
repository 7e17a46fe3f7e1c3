"""Self-CD: an aligned model whose safety message is contrasted away while it replies (Shi et al. 2024, arXiv 2401.17633)."""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.policies.policy_spec import PolicySpec


class SelfCd(Method):
    """No training of its own: a decoding rule with two contexts."""

    name: ClassVar[str] = "self_cd"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Let the policy reply by the rule."""
        return base.with_rule(options.rule_called(self.name))
