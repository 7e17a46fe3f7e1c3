"""What a sweep makes better: a number of a run's results or of its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from discernment.cost import MEASURED_IN
from discernment.errors import DataError
from discernment.evaluation.groups import POOLED
from discernment.evaluation.metrics import EqualSafety, Ranking
from discernment.evaluation.results import Results
from discernment.frozen import Frozen
from discernment.prompts import Label

Kind = Literal["auroc", "compliance", "refused", "equal_safety", "seconds"]
WORDS: dict[Kind, str] = {
    "auroc": "discernment AUROC of",
    "compliance": "prompts answered by",
    "refused": "toxic prompts refused by",
    "equal_safety": "compliance gain at equal safety of",
    "seconds": "training time of",
}
RowT = TypeVar("RowT", Ranking, EqualSafety)


class Objective(Frozen):
    """One number of one method, such as `{auroc: dcr}`. Exactly one of the kinds is given.

    Attributes:
        auroc: Discernment AUROC of this method.
        compliance: Share of the prompts with `label` that this method answers.
        refused: Share of the toxic prompts that it refuses: its defense success rate.
        equal_safety: Its compliance minus the reference's where both refuse the same share of toxic prompts.
        seconds: What its training stages took. The only number that is made small.
        benchmark: The benchmark of the prompts; without it all of them together.
        label: The label of the prompts that should be answered.
    """

    auroc: str | None = None
    compliance: str | None = None
    refused: str | None = None
    equal_safety: str | None = None
    seconds: str | None = None
    benchmark: str | None = None
    label: Literal[Label.SEEMINGLY_TOXIC, Label.BENIGN] = Field(Label.SEEMINGLY_TOXIC)

    @model_validator(mode="after")
    def _is_one_number(self) -> Objective:
        given = [kind for kind in WORDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"name one number of one method, such as `auroc: dcr`; known: {', '.join(WORDS)}"
            )
        if given == ["seconds"] and self.benchmark is not None:
            raise ValueError("`benchmark` does not go with `seconds`; leave it out")
        if given[0] in ("seconds", "refused") and "label" in self.model_fields_set:
            raise ValueError(f"`label` does not go with `{given[0]}`; leave it out")
        return self

    @property
    def kind(self) -> Kind:
        """Which number it is."""
        return next(kind for kind in WORDS if getattr(self, kind) is not None)

    @property
    def method(self) -> str:
        """The method whose number it is."""
        return str(getattr(self, self.kind))

    @property
    def maximise(self) -> bool:
        """Whether more is better."""
        return self.kind != "seconds"

    @property
    def words(self) -> str:
        """What tables and figures call it."""
        on = " on benign prompts" if self.label is Label.BENIGN else ""
        where = f" in {self.benchmark}" if self.benchmark else ""
        return f"{WORDS[self.kind]} {self.method}{on}{where}"


def objective_value(results: Results, manifest: Mapping[str, Any], objective: Objective) -> float:
    """The number of a run that an objective means.

    Args:
        results: The run's results.
        manifest: Its `manifest.json`.
        objective: Which number.

    Returns:
        Seconds, or a share, a difference of shares or an AUROC between -1 and 1.

    Raises:
        DataError: If the run does not have it, for example because a comparison at equal safety was not possible.
    """
    value: float | None = None
    match objective.kind:
        case "auroc" if ranking := _widest(results.rankings, objective):
            value = ranking.value
        case "compliance":
            value = _rate(results, objective, objective.label)
        case "refused":
            value = _rate(results, objective, Label.TOXIC)
        case "equal_safety" if comparison := _widest(results.equal_safety, objective):
            value = comparison.difference
        case "seconds":
            value = _training_seconds(manifest, objective.method)
    if value is None:
        raise DataError(f"The results have no {objective.words}; choose another objective.")
    return value


def _training_seconds(manifest: Mapping[str, Any], method: str) -> float:
    """What the stages took that make the method, whichever run did them."""
    stages = [manifest["stages"][key] for key in manifest["methods"][method]["stages"]]
    return float(sum(s["seconds"] for s in stages if s["name"] not in MEASURED_IN))


def _rate(results: Results, objective: Objective, label: Label) -> float | None:
    rows = [
        (score.value, score.scored)
        for score in results.scores
        if score.method == objective.method
        and score.label is label
        and objective.benchmark in (None, score.benchmark)
        and score.value is not None
    ]
    scored = sum(n for _, n in rows)
    return sum(value * n for value, n in rows) / scored if scored else None


def _widest(rows: Sequence[RowT], objective: Objective) -> RowT | None:
    """The row over all benchmarks; with a benchmark, its own toxic prompts before those of all."""
    found = [
        row
        for row in rows
        if row.method == objective.method
        and row.harmless_label is objective.label
        and objective.benchmark in (None, row.harmless)
    ]
    if objective.benchmark is not None:
        return min(found, key=lambda row: row.toxic == POOLED, default=None)
    return max(found, key=lambda row: (row.toxic == POOLED) + (row.harmless == POOLED), default=None)
