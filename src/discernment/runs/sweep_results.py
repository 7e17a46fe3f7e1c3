"""What a sweep found, as it stands in `sweep.json`."""

from __future__ import annotations

from typing import Any, Literal

from discernment.frozen import Frozen
from discernment.runs.objective import Objective
from discernment.runs.sweep_plan import Dimension, Value

__all__ = ["State", "SweepResults", "SweepTrial"]

State = Literal["complete", "pruned", "failed"]


class SweepTrial(Frozen):
    """One point of the space that was tried.

    Attributes:
        number: Its number, from 0.
        state: `pruned` trials stopped after some of their seeds; `failed` ones have no number to go by.
        parameters: The value of every key of the space.
        values: One number an objective, the mean over the seeds that were run; None if it failed.
        seconds: What it took here, without what earlier trials or an interrupted attempt had done.
        error: Why it failed.
        best: Whether no other complete trial is better: for several objectives, in none without being worse in another.
    """

    number: int
    state: State
    parameters: dict[str, Value]
    values: list[float] | None = None
    seconds: float
    error: str | None = None
    best: bool = False


class SweepResults(Frozen):
    """A sweep and its trials.

    Attributes:
        schema_version: Version of this file's form.
        name: The sweep's name.
        sampler: How points were chosen.
        seeds: The seeds of every trial.
        space: What was searched over.
        objectives: What was made better.
        trials: The trials in the order in which they ended.
    """

    schema_version: Literal[1] = 1
    name: str
    sampler: str
    seeds: tuple[int, ...]
    space: dict[str, Dimension]
    objectives: list[Objective]
    trials: list[SweepTrial]

    @property
    def best(self) -> list[SweepTrial]:
        """The best trial or, for several objectives, all on the Pareto front; empty if none is complete."""
        return [trial for trial in self.trials if trial.best]

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`; what is not said of a trial, an objective or an option is as by default."""
        return {"schema_version": 1, **self.model_dump(mode="json", exclude_defaults=True)}
