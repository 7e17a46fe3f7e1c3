"""Calibrated: an aligned model that begins a refusal to a given share of toxic validation prompts.

After Jain et al. 2024 (arXiv 2412.06748). Training decides how a model ranks prompts by its refusals, and leaves where it
stops refusing wherever that falls. Here the latter is found on validation prompts: a constant on the tokens that begin a
refusal (`policies/calibrated.py`). Models can then be compared by what they answer, as they would be used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from discernment.cost import StageCost
from discernment.errors import ModelError
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.models.batch import length_sorted_batches
from discernment.models.logits import why_not_finite
from discernment.policies.calibrated import Calibrated as CalibratedRule
from discernment.policies.context import beginnings_of, check_context
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec, leave_rule
from discernment.policies.rejection import load_openings
from discernment.policies.rule import find_rule
from discernment.prompts import Label, PromptSet

BATCH = 32
UNREADABLE = "\N{REPLACEMENT CHARACTER}"


class Calibrated(Method):
    """Shift where what it stands on stops refusing, by toxic validation prompts."""

    name: ClassVar[str] = "calibrated"
    acts_by_rule: ClassVar[bool] = True
    on: ClassVar[str | None] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Find the shift."""
        rule = options.rule_called(self.name)
        load_openings(_acting(rule).language)  # a language without any is found before something is trained
        toxic = materials.need("contrast_validation", self.name).with_label(Label.TOXIC)
        return stage("calibration", calibrate, start=base, prompts=toxic, rule=rule)


def calibrate(start: PolicySpec, prompts: PromptSet, rule: RuleSpec, out: Path) -> StageCost:
    """Find the shift at which a model begins a refusal on the share of prompts that the rule names.

    Args:
        start: An aligned model.
        prompts: Toxic prompts that it was not trained on; of fewer than 1 / (1 - share) it begins all as refusals.
        rule: The rule without what it learns.
        out: The stage's directory; gets `rule.safetensors` and `policy.json`.

    Raises:
        DataError: If there are no openings of the language, or a prompt does not fit the model's positions.
        RecipeError: If the template writes something before every reply.
        ModelError: If the model gives logits that are not finite, or its tokenizer begins openings of the language with
            parts of characters.
    """
    acting = _acting(rule)
    policy = Policy.load(start.without_rule("Calibrating"))
    acting.check_template(policy.chat)
    sequences = policy.encode(prompts.asked)
    check_context(policy, sequences, beginnings_of(prompts.asked))
    tokens = first_tokens(policy, acting.language)
    margins = refusal_margins(policy, sequences, tokens)
    shift = shift_for(margins, acting.refused)
    leave_rule(start, rule, {"tokens": tokens, "shift": torch.tensor([shift])}, out)
    notes = {
        "prompts": len(prompts),
        "shift": round(shift, 4),
        "begun_before": round(float((margins > 0).float().mean()), 4),
        "begun_after": round(float((margins + shift > 0).float().mean()), 4),
    }
    return StageCost(steps=len(prompts), tokens=sum(map(len, sequences)), notes=notes)


def _acting(rule: RuleSpec) -> CalibratedRule:
    found = find_rule(rule.name, rule.options)
    assert isinstance(found, CalibratedRule)
    return found


def first_tokens(policy: Policy, language: str) -> Tensor:
    """The tokens that the refusal openings of a language begin with, `[tokens]`.

    Raises:
        DataError: If there are no openings of the language.
        ModelError: If one of the tokens is a part of a character, with which other replies begin as well.
    """
    tokens = sorted({policy.chat.encode_opening(opening)[0] for opening in load_openings(language)})
    parts = [token for token in tokens if UNREADABLE in policy.chat.tokenizer.decode([token])]
    if parts:
        raise ModelError(
            f"The tokenizer of {policy.name} begins refusal openings of `language: {language}` with parts of characters, with "
            "which any reply in that writing begins; name another language."
        )
    return torch.tensor(tokens)


def refusal_margins(policy: Policy, sequences: Sequence[Sequence[int]], tokens: Tensor) -> Tensor:
    """By how many nats the likeliest of the given tokens leads the likeliest other one as the reply's first, `[prompts]`.

    Args:
        policy: The policy.
        sequences: The encoded prompts.
        tokens: Token ids, `[tokens]`.

    Raises:
        ModelError: If the model gives logits that are not finite.
    """
    margins = torch.zeros(len(sequences))
    for rows in length_sorted_batches([len(s) for s in sequences], BATCH):
        logits = policy.next_token_logits([sequences[row] for row in rows]).cpu()
        others = logits.index_fill(1, tokens, -torch.inf)
        margins[rows] = logits[:, tokens].amax(1) - others.amax(1)
    if not margins.isfinite().all():
        raise ModelError(f"{policy.name} gives logits that are not finite; {why_not_finite(policy.model)}.")
    return margins


def shift_for(margins: Tensor, refused: float) -> float:
    """What has to be added to margins for at least a given share of them to be above 0, as few as that allows.

    Args:
        margins: One a prompt, `[prompts]`.
        refused: The share, between 0 and 1.
    """
    ascending = margins.double().sort().values
    answered = int((1 - refused) * len(ascending) + 1e-9)
    first = ascending[answered]  # the first that is refused
    below = ascending[ascending < first]
    last = below[-1] if len(below) else first - 1  # bfloat16 has steps of an eighth there
    return -float((first + last) / 2)
