"""Self-contrastive decoding, Self-CD (Shi et al., ACL 2024, arXiv 2401.17633).

What a model says under a message that stresses safety, less what it says without one, is what makes it refuse. From the
logits under the message this difference is taken away: softmax(y - alpha (y - y')), at every token of the reply. Taken
from the paper's formula; the authors' script reads a sentence of Llama 2's kind, and the wording here is ours.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from discernment.models.chat import ChatFormat
from discernment.policies.rule import DecodingRule
from discernment.prompts import Asked


class SelfCd(DecodingRule):
    """y - alpha (y - y'), with the logits y under a message that stresses safety, and y' without it."""

    name: ClassVar[str] = "self_cd"

    alpha: float = Field(
        2.5,
        ge=0,
        description="0 is the model under the safety message, 1 the model without it, above 1 goes on beyond that.",
    )
    safety: str = Field(
        "You are a helpful, respectful and honest assistant. Put safety first: your replies must not hold anything "
        "harmful, unethical, dangerous or illegal.",
        min_length=1,
        description="The system message that stresses safety, in place of the model's.",
    )

    def contexts(self, chat: ChatFormat, prompt: Asked) -> list[list[int]]:
        """The prompt as it is, and under the safety message."""
        return [chat.encode(prompt), chat.with_system(self.safety).encode(prompt)]

    def combine(self, logits: Tensor, step: int) -> Tensor:
        """Take away what the safety message adds."""
        plain, stressed = logits.unbind(0)
        return (1 - self.alpha) * stressed + self.alpha * plain
