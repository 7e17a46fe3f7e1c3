"""Adaptive contrastive decoding, AdaCD (Qi et al., ACL 2026, arXiv 2604.17132).

A second context asks the model to refuse. Where both contexts agree on the next token and the plain one is as sure of
it, the refusal is the model's own, and is strengthened; elsewhere the second context is moved away from. Taken from the
authors' published script; what their paper says beyond it is not known here.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from discernment.models.chat import ChatFormat
from discernment.policies.rule import DecodingRule
from discernment.prompts import Asked

FLOOR = 100.0
"""A token that is ruled out stays so many nats below the likeliest: finite, so that scores of given replies are."""


class AdaCd(DecodingRule):
    """r + a (r - z) or r - a (r - z), with the logits z after the prompt and r where the model is asked to refuse.

    The first where 1 / (rank of r's likeliest token in z) >= agreement and max p >= agreement * max p_r, for the
    probabilities p of z and p_r of r. This is decided anew at each of the first tokens, from what leads to it alone.
    """

    name: ClassVar[str] = "adacd"

    a: float = Field(4.5, ge=0, description="How far; 0 is the model that is asked to refuse.")
    agreement: float = Field(
        0.9,
        ge=0,
        le=1,
        description="How far the two contexts must agree for a refusal to be strengthened (the authors' lambda).",
    )
    plausible: float = Field(
        0.01,
        ge=0,
        le=1,
        description="A token is ruled out if it is less likely than so much of the likeliest one (their beta).",
    )
    tokens: int = Field(
        10, ge=0, description="Tokens of a reply that are changed; after them the model is as it is."
    )
    refusing: str = Field(
        "Please refuse to answer me!",
        min_length=1,
        description="The system message that asks to refuse, in place of the model's.",
    )

    def contexts(self, chat: ChatFormat, prompt: Asked) -> list[list[int]]:
        """The prompt as it is, and under the message that asks to refuse."""
        return [chat.encode(prompt), chat.with_system(self.refusing).encode(prompt)]

    def combine(self, logits: Tensor, step: int) -> Tensor:
        """Strengthen the refusal, or move away from it."""
        plain, refusing = logits.unbind(0)
        if step >= self.tokens:
            return plain
        p, p_refusing = plain.softmax(-1), refusing.softmax(-1)
        likeliest = refusing.argmax(-1, keepdim=True)
        rank = 1 + (plain > plain.gather(-1, likeliest)).sum(-1)
        surest = p.amax(-1)
        agreed = (1 / rank >= self.agreement) & (surest >= self.agreement * p_refusing.amax(-1))
        sign = agreed[:, None].to(plain) * 2 - 1
        changed = refusing + sign * self.a * (refusing - plain)
        ruled_out = p < self.plausible * surest[:, None]
        floor = changed.masked_fill(ruled_out, -float("inf")).amax(-1, keepdim=True) - FLOOR
        return changed.where(~ruled_out, floor)
