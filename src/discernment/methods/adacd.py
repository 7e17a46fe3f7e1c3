"""AdaCD: an aligned model under adaptive contrastive decoding (Qi et al. 2026, arXiv 2604.17132)."""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.policies.policy_spec import PolicySpec


class AdaCd(Method):
    """No training of its own: a decoding rule with two contexts."""

    name: ClassVar[str] = "adacd"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Let the policy reply by the rule."""
        return base.with_rule(options.rule_called(self.name))
