"""Calibrated refusals: a constant on the tokens that refusals begin with, at the first token of the reply.

Training decides how a model ranks prompts by how surely its reply begins with a refusal; where it stops refusing is one
more number, which falls wherever it falls. The constant moves that number alone. Jain et al. 2024 (Refusal Tokens, arXiv
2412.06748) do so with a token that a model is trained to begin refusals with; here the first tokens of the refusal
openings stand for it, so that any aligned model will do.

The order of prompts by the mass of these tokens stays as it is. The rejection probability reads on from there, and "I"
begins answers too: r becomes exp(b) r / (1 + (exp(b) - 1) m), for the mass m, and can order prompts otherwise.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from discernment.errors import RecipeError
from discernment.models.chat import ChatFormat
from discernment.policies.rule import DecodingRule, Rule
from discernment.prompts import Asked

TENSORS = {"tokens", "shift"}


class Calibrated(DecodingRule):
    """z + b for the tokens that begin a refusal, where the reply's first token is chosen; z elsewhere.

    Its tensors are those `tokens`, and the `shift` b in nats, `[1]`.
    """

    name: ClassVar[str] = "calibrated"

    refused: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Share of the toxic prompts under `contrast_validation` to which the likeliest reply is to begin as a refusal "
        "does.",
    )
    language: str = Field(
        "en", min_length=1, description="Language of the refusal openings; `all` takes every one."
    )

    def contexts(self, chat: ChatFormat, prompt: Asked) -> list[list[int]]:
        """The prompt as it is.

        Raises:
            RecipeError: See `check_template`.
        """
        self.check_template(chat)
        return [chat.encode(prompt)]

    def check_template(self, chat: ChatFormat) -> None:
        """Make sure that what is chosen first is the beginning of an answer.

        Raises:
            RecipeError: If the template writes something before every reply, such as a thought.
        """
        if chat.lead:
            raise RecipeError(
                "The rule 'calibrated' acts where the reply begins, and the template writes something before every reply; set "
                "`thinking: off`, or use another method."
            )

    def combine(self, logits: Tensor, step: int) -> Tensor:
        """Shift what begins a refusal, where the reply begins."""
        if step > 0:
            return logits[0]
        tokens, shift = self.tensors["tokens"].to(logits.device), self.tensors["shift"].to(logits)
        return logits[0].index_add(1, tokens, shift.expand(len(logits[0]), len(tokens)))

    def begun(self) -> Rule:
        """With no shift left: the reply has begun."""
        return self.with_tensors({**self.tensors, "shift": self.tensors["shift"] * 0})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Rule:
        """Take the shift, and what it shifts.

        Raises:
            RecipeError: If one of the tensors is missing.
        """
        if missing := TENSORS - tensors.keys():
            raise RecipeError(f"The rule 'calibrated' needs a tensor `{min(missing)}`.")
        return super().with_tensors(tensors)
