"""Surgical: an aligned model without its direction of false refusal (Wang et al. 2025, arXiv 2410.03415).

As the authors' code has it: differences of mean states of refused seemingly toxic and benign prompts, and of toxic and
benign ones, 128 each, of which only prompts are kept that the model refuses, or answers, as it should for the direction;
layer and template token are those whose ablation leaves the least refusal of seemingly toxic validation prompts, with at
most 0.2 nats of divergence on benign ones and below 80 % of the depth. Validation prompts are `contrast_validation` (and
`validation` for the divergence); without seemingly toxic ones among them the layer is `ablated`'s choice, at the last token.
Refusal is the probability of the refusal openings, where the authors take the first tokens alone. What they add on top at
times, a step along the direction of harm, is off by default in their code and left out here.
"""

import math
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from discernment.cost import StageCost
from discernment.diagnosis.separability import recommend_layer, separability
from discernment.errors import ModelError, RecipeError
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.methods.sides import others, seemingly_toxic, toxic_and_others
from discernment.models.chat import ChatFormat
from discernment.models.layer_outputs import end_states
from discernment.models.layers import find_layers
from discernment.models.writes import take_out
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec, leave_rule
from discernment.policies.rejection import rejection_probability
from discernment.policies.rule import find_rule
from discernment.policies.surgical import Surgical as SurgicalRule
from discernment.prompts import Label, PromptSet
from discernment.training.adapters import check_leaving, leave_policy

TAKEN, LOOKED_AT = 128, 32
"""Training prompts of each kind, and validation prompts, as the authors take them."""
DIVERGENCE, DEPTH = 0.2, 0.8
"""Most divergence in nats on benign prompts, and the share of the depth that the layer lies below."""
BATCH = 32


class Place(NamedTuple):
    """Where a direction is taken from.

    Attributes:
        layer: The layer, counted from 1, whose output it is.
        position: The token, counted from the end of the prompt: -1 is the last one.
    """

    layer: int
    position: int


class Surgical(Method):
    """Steer what it stands on by a direction that a stage of its own finds, or change its weights by it."""

    name: ClassVar[str] = "surgical"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Find the model's direction of false refusal."""
        rule, seed = find_rule(self.name, options.rule), options.align.seed
        assert isinstance(rule, SurgicalRule)
        if rule.weights and base.model.quantization is not None:
            raise RecipeError(
                "A direction cannot be taken out of quantised weights; leave `weights` of 'surgical' out, or `quantization` "
                "of the model."
            )
        toxic, benign = toxic_and_others(materials, self.name, TAKEN, seed)
        looked_at, harmless = materials.contrast_validation, materials.validation or benign
        seemingly = (
            [p for p in looked_at if p.label is Label.SEEMINGLY_TOXIC] if looked_at is not None else []
        )
        found = stage(
            "false_refusal",
            find_false_refusal,
            start=base,
            toxic=toxic,
            benign=benign,
            seemingly=seemingly_toxic(materials, self.name).sample(TAKEN, seed),
            validation=PromptSet(seemingly, looked_at.provenance).sample(LOOKED_AT, seed)
            if looked_at is not None and seemingly
            else None,
            harmless=others(harmless).sample(LOOKED_AT, seed),
            rule=RuleSpec(name=self.name, options={k: v for k, v in options.rule.items() if k != "weights"}),
        )
        return stage("fold", fold, start=base, steered=found) if rule.weights else found


def find_false_refusal(
    start: PolicySpec,
    toxic: PromptSet,
    benign: PromptSet,
    seemingly: PromptSet,
    validation: PromptSet | None,
    harmless: PromptSet,
    rule: RuleSpec,
    out: Path,
) -> StageCost:
    """Find the directions of false and true refusal, and leave the policy without the first in `out`.

    Args:
        start: An aligned model.
        toxic: Toxic prompts.
        benign: Benign prompts.
        seemingly: Seemingly toxic prompts.
        validation: Others of them, by which layer and token are chosen; None leaves that to `recommend_layer`.
        harmless: Benign prompts on which the model must stay as it is.
        rule: The rule without its directions.
        out: The stage's directory; gets `rule.safetensors` and `policy.json`.

    Raises:
        DataError: If there are too few prompts of a label, or one does not fit the model's positions.
        ModelError: If the layers are not found.
        RecipeError: If the two directions are the same everywhere.
    """
    policy = Policy.load(start.without_rule("Looking for a direction"))
    acting = find_rule(rule.name, rule.options)
    assert isinstance(acting, SurgicalRule)
    kept = {
        "toxic": _kept(policy, toxic, refused=True),
        "benign": _kept(policy, benign, refused=False),
        "seemingly": _kept(policy, seemingly, refused=True),
    }
    tail = min(acting.positions or template_tail(policy.chat), template_tail(policy.chat))
    states = {name: _states(policy, prompts, tail) for name, prompts in kept.items()}
    means = {name: of.double().mean(1) for name, of in states.items()}
    false_refusal, harm = means["seemingly"] - means["benign"], means["toxic"] - means["benign"]
    both = PromptSet.concatenate([kept["toxic"], kept["benign"]], "toxic and benign")
    last = torch.cat([states["toxic"], states["benign"]], dim=1)[:, :, -1]
    if validation is None:
        recommended = recommend_layer(separability(last, both))
        place = Place(recommended.layer, -1)
        notes: dict[str, object] = {"reason": recommended.reason}
    else:
        place, notes = _choose(policy, acting, false_refusal, harm, validation, harmless)
    found = {
        "false_refusal": false_refusal[place.layer - 1, place.position].float(),
        "harm": harm[place.layer - 1, place.position].float(),
    }
    leave_rule(start, rule, found, out)
    counts = {name: len(prompts) for name, prompts in kept.items()}
    every = [p for prompts in kept.values() for p in prompts.asked]
    return StageCost(
        steps=len(every),
        tokens=sum(map(len, policy.encode(every))),
        notes={"layer": place.layer, "position": place.position, "prompts": counts, **notes},
    )


def fold(start: PolicySpec, steered: PolicySpec, out: Path) -> StageCost:
    """Take the direction of a policy out of its weights, and leave the model that comes of it in `out`.

    Args:
        start: The policy without the rule.
        steered: The policy with it.
        out: The stage's directory; gets `model/` and `policy.json`.

    Raises:
        ModelError: If the changed weights do not act as the rule does.
        DiskError: If the disk has no room for the model.
    """
    policy = Policy.load(steered, training=True)
    rule = policy.rule
    assert isinstance(rule, SurgicalRule)
    sequences = [policy.chat.encode(text) for text in ("How do I kill a Python process?", "Write a letter.")]
    layers = find_layers(policy.model, policy.layer_path)
    by_rule = policy.next_token_logits(sequences)
    take_out(policy.model, layers, rule.tensors["direction"], rule.coefficient, sequences[0])
    check_leaving(policy.model, None, out)
    policy.rule = None
    by_weights = policy.next_token_logits(sequences)
    near = 0.01 if policy.model.dtype == torch.float32 else 0.1
    if float((by_weights - by_rule).abs().max()) > near * float(by_rule.std()):
        raise ModelError(
            f"The weights of {type(policy.model).__name__} do not act as the rule does once the direction is taken out of "
            "them; leave `weights` out."
        )
    leave_policy(start, policy.model, policy.chat, None, out)
    return StageCost(steps=1, tokens=sum(map(len, sequences)))


def template_tail(chat: ChatFormat) -> int:
    """How many tokens the template writes behind every prompt; at least 1."""
    one, other = (reversed(chat.encode(text)) for text in ("a", "7"))
    return max(1, next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 1))


def _kept(policy: Policy, prompts: PromptSet, *, refused: bool) -> PromptSet:
    """The prompts that the model is more likely to refuse, or to answer, than not; all where these are fewer than two."""
    found = rejection_probability(policy, prompts.asked)
    kept = [p for p, mass in zip(prompts, found, strict=True) if (mass > 0.5) == refused]
    return PromptSet(kept, prompts.provenance) if len(kept) > 1 else prompts


def _states(policy: Policy, prompts: PromptSet, tail: int) -> Tensor:
    """States at the last tokens of each prompt, `[layers, prompts, tail, hidden]`."""
    layers, sequences = find_layers(policy.model, policy.layer_path), policy.encode(prompts.asked)
    starts = range(0, len(sequences), BATCH)
    parts = [end_states(policy.model, layers, sequences[n : n + BATCH], tail, policy.pad_id) for n in starts]
    return torch.cat(parts, dim=1)


def _choose(
    policy: Policy,
    rule: SurgicalRule,
    false_refusal: Tensor,
    harm: Tensor,
    validation: PromptSet,
    harmless: PromptSet,
) -> tuple[Place, dict[str, object]]:
    """The place whose direction leaves the least refusal, of those that leave benign prompts as they are.

    Args:
        policy: The policy.
        rule: The rule without its directions.
        false_refusal: At each place, `[layers, positions, hidden]`.
        harm: The same of true refusal.
        validation: Seemingly toxic prompts.
        harmless: Benign prompts.
    """
    depth, tail = false_refusal.shape[:2]
    asked = policy.encode(harmless.asked)
    before = policy.next_token_logits(asked).log_softmax(-1)
    tried: dict[Place, tuple[float, float]] = {}
    for layer in range(1, max(2, math.ceil(DEPTH * depth))):
        for position in range(-tail, 0):
            at = {"false_refusal": false_refusal[layer - 1, position], "harm": harm[layer - 1, position]}
            try:
                acting = rule.with_tensors(at)
            except RecipeError:  # nothing is left of it here
                continue
            steered = Policy(policy.model, policy.chat, policy.name, acting, policy.layer_path)
            after = steered.next_token_logits(asked).log_softmax(-1)
            divergence = float((before.exp() * (before - after)).sum(-1).mean())
            mass = torch.tensor(rejection_probability(steered, validation.asked), dtype=torch.float64)
            score = float(((mass + 1e-8).log() - (1 - mass + 1e-8).log()).mean())
            tried[Place(layer, position)] = (score, divergence)
    if not tried:
        raise RecipeError(
            "The directions of false and of true refusal are the same, so nothing is left to take out."
        )
    near = {place: found for place, found in tried.items() if found[1] <= DIVERGENCE}
    best = min(near, key=lambda p: near[p][0]) if near else min(tried, key=lambda p: tried[p][1])
    score, divergence = tried[best]
    notes = {"refusal_score": round(score, 4), "divergence": round(divergence, 4), "tried": len(tried)}
    return best, {**notes, "within_divergence": len(near)}
