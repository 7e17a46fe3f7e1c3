"""Rules for tests: some that change nothing, some that change much, and one that decides by prompt."""

from __future__ import annotations

from typing import ClassVar

import torch

from discernment.policies.rule import DecodingRule, SteeringRule


class Unchanged(DecodingRule):
    """Reads a second context and does not listen to it."""

    name: ClassVar[str] = "unchanged"

    def contexts(self, chat, prompt):
        return [chat.encode(prompt), chat.with_system("Be careful.").encode(prompt)]


class Pushed(Unchanged):
    """Away from what a second context says, the more so the longer the reply is: strong, and different by step."""

    name: ClassVar[str] = "pushed"

    strength: float = 2.0

    def combine(self, logits, step):
        return logits[0] - (self.strength + step) * logits[1]


class PushedSlowly(Pushed):
    """The same, where the tree of openings must not be read in one pass."""

    name: ClassVar[str] = "pushed_slowly"
    tree: ClassVar[bool] = False


class Shifted(SteeringRule):
    """Adds a fixed vector to the output of two layers."""

    name: ClassVar[str] = "shifted"

    strength: float = 4.0

    def layers(self, depth):
        return (1, depth)

    def steer(self, hidden, layer):
        generator = torch.Generator().manual_seed(layer)
        direction = torch.randn(hidden.shape[-1], generator=generator).to(hidden)
        return hidden + self.strength * direction


class ShiftedSome(Shifted):
    """The same for prompts with an odd number of tokens only."""

    name: ClassVar[str] = "shifted_some"
    decides: ClassVar[bool] = True

    def strengths(self, policy, sequences):
        return torch.tensor([float(len(s) % 2) for s in sequences])
