"""Calibrated refusals: a constant on the tokens that refusals begin with, at the first token of the reply.

How likely a model is to begin with a refusal ranks prompts; where it stops refusing is one more number, which training
leaves wherever it falls. The constant moves that number alone: no prompt is ranked otherwise. Jain et al. 2024 (Refusal
Tokens, arXiv 2412.06748) do so with a token that a model is trained to begin refusals with; here the first tokens of the
refusal openings stand for it, so that any aligned model will do.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from discernment.errors import RecipeError
from discernment.models.chat import ChatFormat
from discernment.policies.rule import DecodingRule, Rule
from discernment.prompts import Asked

TENSORS = {"tokens", "shift", "step"}


class Calibrated(DecodingRule):
    """z + b for the tokens that begin a refusal, where the reply's first token is chosen; z elsewhere.

    Its tensors are those `tokens`, the `shift` b in nats, `[1]`, and the `step` at which the reply begins, `[1]`: 0, or
    behind what the template writes before every reply.
    """

    name: ClassVar[str] = "calibrated"

    refused: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Share of the toxic prompts under `contrast_validation` that is to be refused.",
    )
    language: str = Field(
        "en", min_length=1, description="Language of the refusal openings; `all` takes every one."
    )

    def contexts(self, chat: ChatFormat, prompt: Asked) -> list[list[int]]:
        """The prompt as it is."""
        return [chat.encode(prompt)]

    def combine(self, logits: Tensor, step: int) -> Tensor:
        """Shift what begins a refusal, where the reply begins."""
        if step != int(self.tensors["step"]):
            return logits[0]
        tokens, shift = self.tensors["tokens"].to(logits.device), self.tensors["shift"].to(logits)
        return logits[0].index_add(1, tokens, shift.expand(len(logits[0]), len(tokens)))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Rule:
        """Take the shift, and what it shifts.

        Raises:
            RecipeError: If one of the tensors is missing.
        """
        if missing := TENSORS - tensors.keys():
            raise RecipeError(f"The rule 'calibrated' needs a tensor `{min(missing)}`.")
        return super().with_tensors(tensors)
