"""A prompt with its label, the unit that every room speaks of."""

from enum import StrEnum

from pydantic import Field

from discernment.frozen import Frozen


class Label(StrEnum):
    """What a prompt is, and so what a policy should do with it."""

    TOXIC = "toxic"
    """Harmful: should be refused."""
    SEEMINGLY_TOXIC = "seemingly_toxic"
    """Looks harmful and is not: should be answered."""
    BENIGN = "benign"
    """Neither is nor looks harmful: should be answered."""

    @property
    def should_refuse(self) -> bool:
        """Whether refusing is the right thing to do."""
        return self is Label.TOXIC


class Split(StrEnum):
    """Which part of the work may see a prompt."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Prompt(Frozen):
    """One prompt.

    Attributes:
        id: Unique within its set.
        text: What the user types, without any chat template.
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
    text: str = Field(min_length=1)
    label: Label
    category: str | None = None
    source: str
    partner: str | None = None
    frame: str | None = None
    keyword: str | None = None
    split: Split | None = None
    response: str | None = None
