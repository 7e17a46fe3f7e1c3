"""What a stage did and used."""

from typing import Any

from pydantic import BaseModel, Field


class StageCost(BaseModel):
    """What a training stage did and used.

    Attributes:
        steps: Optimizer steps.
        tokens: Tokens seen, padding left out.
        notes: Facts for the manifest, e.g. the step of the best checkpoint.
    """

    steps: int
    tokens: int
    notes: dict[str, Any] = Field(default_factory=dict)
