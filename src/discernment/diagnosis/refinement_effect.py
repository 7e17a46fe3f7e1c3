"""What stage 1 did to both sides of the bound of Proposition 1, and what a run writes of it: `proposition.json`."""

from itertools import combinations_with_replacement
from typing import Literal

import numpy as np

from discernment.diagnosis.proposition import PropositionCheck
from discernment.errors import DataError
from discernment.frozen import FiniteFrozen
from discernment.prompts import Label
from discernment.statistics.pairs import PairSample, interval


class Ratio(FiniteFrozen):
    """A mean over pairs after stage 1, divided by the mean before.

    Attributes:
        value: The ratio; None if the mean before is not positive.
        low: Lower end of its 95 % bootstrap interval over prompts; None with fewer than ten clusters on a side, or
            where the mean before is not positive in every resample.
        high: Upper end.
    """

    value: float | None
    low: float | None
    high: float | None

    @property
    def fell(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high is not None and self.high < 1

    def __str__(self) -> str:
        if self.value is None:
            return "no ratio, not being positive before"
        if self.low is None or self.high is None:
            return f"{self.value:.2f} times what it was (no interval)"
        return f"{self.value:.2f} times what it was ({self.low:.2f} to {self.high:.2f})"


class GroupChange(FiniteFrozen):
    """How pairs of prompts of two labels changed.

    Attributes:
        labels: The labels of the pairs.
        similarity: Change of h'^T Q h.
        trained_norm: Change of the kernel norm of the trained parameters.
        full_norm: Change of the kernel norm of all parameters.
    """

    labels: tuple[Label, Label]
    similarity: Ratio
    trained_norm: Ratio
    full_norm: Ratio


class PropositionComparison(FiniteFrozen):
    """Both sides of Proposition 1 before and after stage 1.

    Attributes:
        layer: l.
        same_tokens: Whether both kernels have the same output rows; None if each prompt has its own.
        changes: The change of the pairs of each two labels.
    """

    layer: int
    same_tokens: bool | None
    changes: list[GroupChange]

    @property
    def finding(self) -> str:
        """What the measurement says, in plain words."""
        change = {c.labels: c for c in self.changes}
        cross = change[Label.TOXIC, Label.SEEMINGLY_TOXIC]
        front = f"the kernel norm of layers 1 to {self.layer}"
        sentences = [
            f"Between toxic and seemingly toxic prompts, h'^T Q h at layer {self.layer} is {cross.similarity}, {front} "
            f"{cross.trained_norm}, and that of all parameters {cross.full_norm}.",
            _verdict(cross.similarity, cross.trained_norm),
        ]
        if within := change.get((Label.TOXIC, Label.TOXIC)):
            sentences.append(
                f"Among toxic prompts, {front} is {within.trained_norm}; as far as it fell there too, the scale "
                "changed and the labels did not part."
            )
        if self.same_tokens is False:
            sentences.append("The likeliest tokens changed, so the two kernels have different output rows.")
        return " ".join(sentences)


class RefinementCheck(FiniteFrozen):
    """Proposition 1 before and after one stage 1 of a run.

    Attributes:
        methods: The methods that share the stage.
        before: The check of what stage 1 started from.
        after: The check of the refined model.
        comparison: What the stage did to both sides of the bound.
    """

    methods: list[str]
    before: PropositionCheck
    after: PropositionCheck
    comparison: PropositionComparison


class PropositionResults(FiniteFrozen):
    """What a run found about Proposition 1, as in its `proposition.json`.

    Attributes:
        schema_version: Version of this file's form.
        refinements: One entry a stage 1.
    """

    schema_version: Literal[1] = 1
    refinements: list[RefinementCheck]


def compare_propositions(
    before: PropositionCheck, after: PropositionCheck, *, seed: int = 0
) -> PropositionComparison:
    """Say what stage 1 did to both sides of the bound.

    Args:
        before: The check of what stage 1 started from.
        after: The check of the refined model, with the same prompts, layer, seed and options.
        seed: Fixes the resamples of the intervals.

    Raises:
        DataError: If the checks differ in layer or options, or share no pair of a toxic and a seemingly toxic prompt.
    """
    cross = (Label.TOXIC, Label.SEEMINGLY_TOXIC)
    common = set.intersection(*({(p.first, p.second) for p in check.pairs} for check in (before, after)))
    kept = [p for p in before.pairs if (p.first, p.second) in common]
    groups = {p.labels for p in kept}
    if (before.layer, before.options) != (after.layer, after.options) or cross not in groups:
        raise DataError(
            f"The checks of {before.model!r} and {after.model!r} cannot be compared; measure both with the same "
            "prompts, layer, options and seed."
        )
    labels = {key: label for p in kept for key, label in zip((p.first, p.second), p.labels, strict=True)}
    position = {key: n for n, key in enumerate(labels)}
    clusters = [before.clusters[key] for key in labels]

    def sample(check: PropositionCheck, value: str) -> PairSample:
        values = np.full((len(labels), len(labels)), np.nan)
        np.fill_diagonal(values, 0)  # scored
        for pair in check.pairs:
            if (pair.first, pair.second) in common:
                row, column = position[pair.first], position[pair.second]
                values[row, column] = values[column, row] = getattr(pair, value)
        return PairSample(values, list(labels.values()), clusters, seed)

    samples = {
        value: (sample(before, value), sample(after, value))
        for value in ("similarity", "trained_norm", "full_norm")
    }
    return PropositionComparison(
        layer=before.layer,
        same_tokens=None if before.tokens is None else set(before.tokens) == set(after.tokens or ()),
        changes=[
            GroupChange(labels=group, **{value: _ratio(*both, *group) for value, both in samples.items()})
            for group in combinations_with_replacement(Label, 2)
            if group in groups
        ],
    )


def _ratio(before: PairSample, after: PairSample, row: Label, column: Label) -> Ratio:
    """Ratio of the means over the pairs of two labels; both samples have the same resamples."""
    old, new = before.mean(row, column), after.mean(row, column)
    if old.mean is None or new.mean is None or old.mean <= 0:
        return Ratio(value=None, low=None, high=None)
    resampled = before.resampled(row, column)
    safe = old.low is not None and not (resampled <= 0).any()
    low, high = interval(after.resampled(row, column) / resampled if safe else None)
    return Ratio(value=new.mean / old.mean, low=low, high=high)


def _verdict(similarity: Ratio, kernel: Ratio) -> str:
    if similarity.high is None or kernel.high is None:
        return "Without an interval, it cannot be said whether they fell."
    if similarity.fell and kernel.fell:
        return "Both fell, as the paper says."
    if similarity.fell:
        return "The kernel did not measurably follow the similarity, unlike what the paper says."
    if kernel.fell:
        return "The kernel fell without a measurable fall of the similarity: something else lowered it."
    return "Neither measurably fell, unlike what the paper says."
