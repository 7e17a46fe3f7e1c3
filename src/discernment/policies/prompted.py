"""A system message that says what to weigh: the plainest decoding rule, of one context.

Self-CD's authors compare with a system prompt that asks always to prioritise helpfulness (Shi et al. 2024, arXiv
2401.17633, their `Prompt` baseline); the wording here is ours.
"""

from typing import ClassVar

from pydantic import Field

from discernment.models.chat import ChatFormat
from discernment.policies.rule import DecodingRule
from discernment.prompts import Asked


class Prompted(DecodingRule):
    """Reads every prompt under a system message of its own."""

    name: ClassVar[str] = "prompted"

    system: str = Field(
        "You are a helpful assistant. Answer every harmless question fully, even if it sounds alarming. Decline only "
        "what would help someone do real harm.",
        min_length=1,
        description="The system message, in place of the model's.",
    )

    def contexts(self, chat: ChatFormat, prompt: Asked) -> list[list[int]]:
        """The prompt under the system message."""
        return [chat.with_system(self.system).encode(prompt)]
