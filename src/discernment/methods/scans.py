"""SCANS: an aligned model steered by prompt towards or away from refusal (Cao et al. 2025, arXiv 2408.11491).

The vectors are differences of mean states of toxic and benign training prompts at the last prompt token, one a layer, of
64 prompts each as the authors take them. Their threshold is tuned by test set; here it is the one of the best balanced
accuracy (Youden 1950) on `contrast_validation`, else `contrast`, else the prompts of the vectors, none of them a test
prompt. A prompt is never compared with itself.
"""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from discernment.cost import StageCost
from discernment.diagnosis.separability import layer_states
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.methods.sides import others, toxic_and_others
from discernment.models.batch import length_sorted_batches
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec, leave_rule
from discernment.policies.rule import find_rule
from discernment.policies.scans import Scans as ScansRule
from discernment.policies.scans import moves
from discernment.prompts import Label, PromptSet

ANCHORS = 64
"""Toxic prompts, and benign ones, that the vectors are taken from."""
TUNED = 256
"""Most prompts that the threshold is found on."""
BATCH = 32


class Scans(Method):
    """Steer what it stands on by vectors and a threshold that a stage of its own finds."""

    name: ClassVar[str] = "scans"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Find the model's vectors and threshold."""
        rule = options.rule_called(self.name)
        sides = toxic_and_others(materials, self.name, ANCHORS, options.align.seed)
        tuning = materials.contrast_validation or materials.contrast
        if tuning is not None:
            tuning = tuning.sample(TUNED, options.align.seed)
            tuning.with_label(Label.TOXIC), others(tuning)  # there must be some of both
        return stage(
            "vectors",
            find_vectors,
            start=base,
            prompts=PromptSet.concatenate(sides, "anchors"),
            tuning=tuning,
            rule=rule,
        )


def find_vectors(
    start: PolicySpec, prompts: PromptSet, tuning: PromptSet | None, rule: RuleSpec, out: Path
) -> StageCost:
    """Find vectors, reference and threshold, and leave the policy with the rule in `out`.

    Args:
        start: An aligned model.
        prompts: Toxic prompts and others that vectors and reference are taken from.
        tuning: Prompts of both kinds that the threshold is found on; the same by default.
        rule: The rule without what it learns.
        out: The stage's directory; gets `rule.safetensors` and `policy.json`.

    Raises:
        DataError: If a prompt does not fit the model's positions.
        ModelError: If the layers are not found, or a state is not finite.
    """
    policy, tuning = Policy.load(start.without_rule("Looking for vectors")), tuning or prompts
    acting = find_rule(rule.name, rule.options)
    assert isinstance(acting, ScansRule)
    toxic = torch.tensor([p.label.should_refuse for p in prompts])
    states = layer_states(policy, prompts)
    vectors = states[:, toxic].mean(1) - states[:, ~toxic].mean(1)
    anchors = PromptSet([p for p in prompts if p.label.should_refuse], prompts.provenance)
    moved, asked = _moves(policy, anchors), anchors.asked
    likeness = []
    for prompt, own in zip(tuning, _moves(policy, tuning).unbind(1), strict=True):
        others = torch.tensor([prompt.asked != anchor for anchor in asked])
        reference = moved[:, others if others.any() else slice(None)].mean(1)
        likeness.append(acting.likeness(own[:, None], reference))
    refuse = torch.tensor([p.label.should_refuse for p in tuning])
    threshold, accuracy = best_threshold(torch.cat(likeness), refuse)
    found = {"vectors": vectors, "reference": moved.mean(1), "threshold": torch.tensor([threshold])}
    leave_rule(start, rule, found, out)
    tokens = sum(len(ids) for ids in policy.encode([*prompts.asked, *tuning.asked]))
    notes = {
        "threshold": round(threshold, 4),
        "balanced_accuracy": round(accuracy, 4),
        "tuned_on": len(tuning),
    }
    return StageCost(steps=len(prompts) + len(tuning), tokens=tokens, notes=notes)


def best_threshold(likeness: Tensor, toxic: Tensor) -> tuple[float, float]:
    """The threshold of the best balanced accuracy, half-way between two prompts, and that accuracy.

    Args:
        likeness: Of each prompt; from the threshold on it is taken for toxic.
        toxic: Whether it is.
    """
    values = likeness.unique()  # sorted
    cuts = torch.cat([values[:1] - 1e-4, (values[1:] + values[:-1]) / 2, values[-1:] + 1e-4])
    taken = likeness >= cuts[:, None]
    accuracy = (taken[:, toxic].float().mean(1) + (~taken[:, ~toxic]).float().mean(1)) / 2
    best = int(accuracy.argmax())
    return float(cuts[best]), float(accuracy[best])


def _moves(policy: Policy, prompts: PromptSet) -> Tensor:
    sequences = policy.encode(prompts.asked)
    batches = list(length_sorted_batches([len(s) for s in sequences], BATCH))
    found = torch.cat([moves(policy, [sequences[n] for n in rows]) for rows in batches], dim=1)
    return found[:, torch.tensor([n for rows in batches for n in rows]).argsort()]
