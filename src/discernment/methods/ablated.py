"""Ablated: an aligned model with the direction of refusal taken out of its states (Arditi et al. 2024, arXiv 2406.11717).

The direction is the difference of the mean states of toxic and of benign training prompts, at the last prompt token of
the layer that tells them apart best on sources that it was not fitted on.
"""

from pathlib import Path
from typing import ClassVar

import torch

from discernment.cost import StageCost
from discernment.diagnosis.separability import layer_states, recommend_layer, separability
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.methods.stl import safety_mix
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec, leave_rule
from discernment.prompts import PromptSet


class Ablated(Method):
    """Steer what it stands on by a direction that a stage of its own finds."""

    name: ClassVar[str] = "ablated"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Find the model's direction of refusal."""
        rule = options.rule_called(self.name)
        return stage(
            "direction",
            find_direction,
            start=base,
            prompts=safety_mix(materials, self.name),
            rule=rule,
        )


def find_direction(start: PolicySpec, prompts: PromptSet, rule: RuleSpec, out: Path) -> StageCost:
    """Find the direction of refusal, and leave the policy without it in `out`.

    Args:
        start: An aligned model.
        prompts: Toxic and benign prompts.
        rule: The rule without its direction.
        out: The stage's directory; gets `rule.safetensors` and `policy.json`.

    Raises:
        DataError: If there are fewer than two toxic prompts, or than two others.
        ModelError: If the layers are not found, or a state is not finite.
    """
    policy = Policy.load(start)
    states = layer_states(policy, prompts)
    found = recommend_layer(separability(states, prompts))
    toxic = torch.tensor([p.label.should_refuse for p in prompts])
    at_layer = states[found.layer - 1]
    direction = at_layer[toxic].mean(0) - at_layer[~toxic].mean(0)
    leave_rule(start, rule, {"direction": direction}, out)
    tokens = sum(len(ids) for ids in policy.encode(prompts.asked))
    return StageCost(
        steps=len(prompts), tokens=tokens, notes={"layer": found.layer, "layer_reason": found.reason}
    )
