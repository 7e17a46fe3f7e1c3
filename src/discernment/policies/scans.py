"""SCANS: steering towards or away from refusal, as a look at the prompt says (Cao et al., AAAI 2025, arXiv 2408.11491).

Behind the prompt the model is made to begin a helpful reply, and how its states move with that word is compared with how
they move behind toxic prompts. What moves likewise is taken for toxic, and steered towards refusal; all else away from
it. Taken from the authors' published code, with layers counted in shares of the depth (theirs: 10 to 19 of 32); they tune
the threshold on each test set, and here a stage finds it on training prompts (`methods/scans.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from discernment.errors import RecipeError
from discernment.models.layer_outputs import end_states
from discernment.models.layers import find_layers
from discernment.policies.rule import Rule, SteeringRule

if TYPE_CHECKING:
    from discernment.policies.policy import Policy

BEGINNING = "Sure"
"""The helpful beginning of a reply that the model is shown behind each prompt."""
STEERED = (10 / 32, 20 / 32)
"""Between which shares of the depth the layers lie that are steered: the authors' in a model of 32 layers."""
TENSORS = {"vectors", "reference", "threshold"}


class Scans(SteeringRule):
    """h + s strength v_l from the last prompt token on: s is 1 for a prompt that looks toxic, and -1 for any other.

    Its tensors: `vectors`, v_l at every layer, unit vectors towards refusal, `[layers, hidden]`; `reference`, the mean move
    of toxic prompts at every layer, `[layers, hidden]`; `threshold`, `[1]`.
    """

    name: ClassVar[str] = "scans"
    decides: ClassVar[bool] = True
    from_last: ClassVar[bool] = True

    strength: float = Field(3.5, description="How far; 0 changes nothing.")
    threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Likeness from which on a prompt is taken for toxic; the one found on training prompts by default.",
    )
    first_layer: int | None = Field(
        None, ge=1, description="The first layer that is steered; behind 10/32 of the depth by default."
    )
    last_layer: int | None = Field(None, ge=1, description="The last one; at 20/32 of the depth by default.")

    @model_validator(mode="after")
    def _in_order(self) -> Scans:
        if (self.last_layer or math.inf) < (self.first_layer or 1):
            raise ValueError("`last_layer` lies before `first_layer`")
        return self

    def layers(self, depth: int) -> Sequence[int]:
        """From the first to the last that the options name, or that the depth gives."""
        begin, end = (round(share * depth) for share in STEERED)
        first = self.first_layer or min(begin + 1, self.last_layer or depth)
        return range(first, (self.last_layer or max(end, first)) + 1)

    def steer(self, hidden: Tensor, layer: int) -> Tensor:
        """Move the states towards refusal."""
        return hidden + self.strength * self.tensors["vectors"][layer - 1].to(hidden)

    def strengths(self, policy: Policy, sequences: Sequence[Sequence[int]]) -> Tensor:
        """1 for a prompt that looks toxic, -1 for any other."""
        likeness = self.likeness(moves(policy, sequences), self.tensors["reference"])
        threshold = self.tensors["threshold"] if self.threshold is None else self.threshold
        return torch.where(likeness >= threshold, 1.0, -1.0).to(policy.model.device)

    def likeness(self, moved: Tensor, reference: Tensor) -> Tensor:
        """Mean cosine of moves with those of toxic prompts, from the first layer that is steered to the last of all.

        Args:
            moved: `[layers, prompts, hidden]`.
            reference: `[layers, hidden]`.

        Returns:
            `[prompts]`.
        """
        first = self.layers(len(moved))[0] - 1
        return cosine_similarity(moved[first:], reference[first:, None].float(), dim=-1).mean(0)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Rule:
        """Take what a stage has found, with vectors of length 1.

        Raises:
            RecipeError: If something is missing.
        """
        if TENSORS - tensors.keys():
            raise RecipeError("The rule 'scans' needs the tensors `vectors`, `reference` and `threshold`.")
        unit = normalize(tensors["vectors"].float(), dim=-1)
        return super().with_tensors({**tensors, "vectors": unit})


def moves(policy: Policy, sequences: Sequence[Sequence[int]]) -> Tensor:
    """How the states at every layer change from the last prompt token to that of a helpful beginning behind it.

    Args:
        policy: The policy, whose rule does not act here.
        sequences: Token ids of the rendered prompts.

    Returns:
        State at the prompt's end less state at the end of the beginning, `[layers, prompts, hidden]`, float32, on the CPU.
    """
    begun = [*policy.chat.lead, *policy.chat.encode_opening(BEGINNING)]
    layers, most = find_layers(policy.model, policy.layer_path), policy.positions
    rows = [[*sequence, *begun][-most if most else 0 :] for sequence in sequences]
    found = end_states(policy.model, layers, rows, len(begun) + 1, policy.pad_id)
    return found[:, :, 0] - found[:, :, -1]
