"""What a policy is asked: a text alone, or the end of a conversation, perhaps under a system message of its own."""

from typing import Any, Literal, Self

from pydantic import Field

from discernment.frozen import Frozen


class Turn(Frozen):
    """What was said before.

    Attributes:
        role: Who said it.
        content: What was said.
    """

    role: Literal["user", "assistant"]
    content: str


class Conversation(Frozen):
    """What the user says last, and what comes before it.

    Attributes:
        text: What the user says last, without any chat template.
        system: The conversation's own system message; a policy's own stands before it.
        earlier: The turns before, of user and assistant alternately.
    """

    # What is not there is in no dump, so that a plain prompt has the hash that it had before there were others.
    text: str = Field(min_length=1)
    system: str | None = Field(None, exclude_if=lambda system: system is None)
    earlier: tuple[Turn, ...] = Field((), exclude_if=lambda earlier: not earlier)

    @classmethod
    def of(cls, asked: "Asked") -> "Conversation":
        """A conversation, or a text as one of a single turn."""
        return asked if isinstance(asked, Conversation) else Conversation.model_construct(text=asked)

    @property
    def asked(self) -> "Asked":
        """What a policy is asked: the text alone where nothing comes before it."""
        if self.system is None and not self.earlier:
            return self.text
        return Conversation.model_construct(text=self.text, system=self.system, earlier=self.earlier)

    @property
    def turns(self) -> list[dict[str, str]]:
        """All of it as chat templates and files have it: `role` and `content`, the system message first."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        said = [turn.model_dump() for turn in self.earlier]
        return [*system, *said, {"role": "user", "content": self.text}]

    @property
    def whole(self) -> str:
        """All of it as one text for people; the text itself where nothing comes before it."""
        turns = self.turns
        if len(turns) == 1:
            return self.text
        return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)

    def under(self, system: str | None) -> Self:
        """The same with a policy's own system message before its own, as far as there are any."""
        given = [message for message in (system, self.system) if message is not None]
        return self.model_copy(update={"system": "\n\n".join(filter(None, given)) if given else None})

    def with_text(self, text: str) -> Self:
        """The same with another last turn."""
        return self.model_copy(update={"text": text})


Asked = str | Conversation
"""A plain prompt is its text."""


def text_of(asked: Asked) -> str:
    """What the user says last."""
    return asked if isinstance(asked, str) else asked.text


def with_text(asked: Asked, text: str) -> Asked:
    """The same with another last turn."""
    return text if isinstance(asked, str) else asked.with_text(text)


def plainly(asked: Asked) -> Any:
    """What stands for it in a hash: the text alone where nothing comes before it."""
    return asked if isinstance(asked, str) else asked.turns
