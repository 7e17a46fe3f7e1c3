"""A prompt with its label, the unit that every room speaks of."""

from enum import StrEnum

from pydantic import Field

from discernment.prompts.conversation import Conversation


class Label(StrEnum):
    """What a prompt is, and so what a policy should do with it; read in any case."""

    TOXIC = "toxic"
    """Harmful: should be refused."""
    SEEMINGLY_TOXIC = "seemingly_toxic"
    """Looks harmful and is not: should be answered."""
    BENIGN = "benign"
    """Neither is nor looks harmful: should be answered."""

    @classmethod
    def _missing_(cls, value: object) -> "Label | None":
        if not isinstance(value, str):
            return None
        name = "_".join(value.casefold().replace("-", " ").split())
        return next((label for label in cls if label.value == name), None)

    @property
    def should_refuse(self) -> bool:
        """Whether refusing is the right thing to do."""
        return self is Label.TOXIC


HARMLESS = (Label.SEEMINGLY_TOXIC, Label.BENIGN)
"""The labels of prompts that should be answered."""


class Split(StrEnum):
    """Which part of the work may see a prompt."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Prompt(Conversation):
    """One prompt: what the user says, under a system message and behind earlier turns where the set has them.

    Attributes:
        id: Unique within its set.
        label: `toxic`, `seemingly_toxic` or `benign`.
        category: Topic or type within the source, where it has one.
        source: The data set that it comes from.
        partner: The id of the matched prompt with the other label (same wording frame), where there is one.
        frame: The wording frame that it shares with its partner, where there is one.
        keyword: The word that looks alarming, where it is known.
        split: The split that the source itself assigns, where it does.
        response: A reply to train on: a safe refusal or a helpful answer, where there is one.
    """

    id: str = Field(min_length=1)
    label: Label
    category: str | None = None
    source: str
    partner: str | None = None
    frame: str | None = None
    keyword: str | None = None
    split: Split | None = None
    response: str | None = None
