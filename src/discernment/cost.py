"""What a stage did and used."""

from typing import Any

from pydantic import BaseModel, Field

MEASURED_IN = frozenset(
    ("evaluate", "attack", "flips", "judge", "ability", "tasks", "diagnose", "proposition")
)
"""Stages that measure a method; the others make it."""


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
