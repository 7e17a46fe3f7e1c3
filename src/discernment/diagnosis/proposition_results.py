"""What a check of Proposition 1 says of a model, and of stage 1: the rows of `proposition.json`, and their findings."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from discernment.frozen import FiniteFrozen
from discernment.kernel.kernel import KernelOptions
from discernment.prompts import Label

__all__ = [
    "Assumption",
    "BoundCheck",
    "GroupChange",
    "PromptPair",
    "PropositionCheck",
    "PropositionComparison",
    "PropositionResults",
    "Ratio",
    "RefinementCheck",
]

COVERAGE = 0.95
"""The share of calibration pairs for which c is made to hold."""
LOOSE = 10.0
"""A bound that is typically more than so many times the measured norm says little about it."""


class Assumption(StrEnum):
    """Why the bound fails for a pair: the first of these that applies."""

    SIMILARITY_NOT_POSITIVE = "similarity_not_positive"
    """h'^T Q h is not positive and bounds nothing."""
    TAIL_SENSITIVITY = "tail_sensitivity"
    """A1: one of the prompts is more sensitive to the untrained parameters than tau."""
    FEATURE_NORM = "feature_norm"
    """A4: the norm of one of the states is outside the range of the calibration prompts."""
    LOCAL_LINEARITY = "local_linearity"
    """A2 and A3, by exclusion: one Q and one c for all prompts do not describe this pair."""


class PromptPair(FiniteFrozen):
    """Both forms of the bound for two test prompts.

    Attributes:
        first: Id of the one prompt.
        second: Id of the other.
        labels: Their labels, in the order of `Label`.
        similarity: h'^T Q h.
        trained_norm: ||K||_F for the trained parameters.
        frozen_bound: What the frozen form says of it.
        frozen_failure: Why that is wrong; None where the bound holds.
        full_norm: ||K||_F for all parameters.
        full_bound: What the full form says of it.
        full_failure: Why that is wrong; None where the bound holds.
    """

    first: str
    second: str
    labels: tuple[Label, Label]
    similarity: float
    trained_norm: float
    frozen_bound: float
    frozen_failure: Assumption | None
    full_norm: float
    full_bound: float
    full_failure: Assumption | None


class BoundCheck(FiniteFrozen):
    """One form of the bound over all pairs of test prompts (which share prompts: they are not independent).

    Attributes:
        pairs: Number of pairs.
        holds: Share of the pairs for which the bound holds.
        tightness: Median of bound / measured norm.
        delta: The Delta that the worst pair needs: norm minus bound, at least 0.
        similarity_rank: Spearman correlation of h'^T Q h with the measured norm; None where one is constant.
        cosine_rank: The same for the cosine of the two states.
        centred_cosine_rank: The same after the mean state of the calibration prompts is subtracted.
        failures: How many pairs fail, by reason.
    """

    pairs: int
    holds: float
    tightness: float
    delta: float
    similarity_rank: float | None
    cosine_rank: float | None
    centred_cosine_rank: float | None
    failures: dict[Assumption, int]

    def describe(self, name: str) -> str:
        """The check in plain words."""
        loose = " (too loose to say much)" if self.tightness > LOOSE else ""
        reasons = ", ".join(f"{a.replace('_', ' ')} ({n})" for a, n in self.failures.items())
        return (
            f"{name} holds for {self.holds:.0%} of {self.pairs} held-out pairs and is typically {self.tightness:.3g} "
            f"times the measured norm{loose}"
            + (f"; where it fails, the reason is {reasons}." if reasons else ".")
        )


class PropositionCheck(FiniteFrozen):
    """Both sides of Proposition 1, measured on one model.

    Attributes:
        model: The policy's name.
        layer: l, counted from 1.
        options: How the kernels were measured.
        calibration_prompts: Number of prompts that Q, c and tau come from.
        unscored: Why prompts were left out, by id.
        tokens: The output rows' token ids, where all prompts share them.
        constant: c.
        tail_sensitivity: tau.
        feature_norms: The least and the largest norm of a calibration prompt's state.
        frozen: The frozen form.
        full: The full form.
        pairs: The pairs of test prompts, at most 2000.
        clusters: Number of the cluster of each test prompt, by id; matched partners and frames share theirs.
    """

    model: str
    layer: int
    options: KernelOptions
    calibration_prompts: int
    unscored: dict[str, str]
    tokens: list[int] | None
    constant: float
    tail_sensitivity: float
    feature_norms: tuple[float, float]
    frozen: BoundCheck
    full: BoundCheck
    pairs: list[PromptPair]
    clusters: dict[str, int]

    @property
    def finding(self) -> str:
        """What the measurement says, in plain words."""
        form = self.frozen
        ranks = [form.similarity_rank, form.cosine_rank, form.centred_cosine_rank]
        similarity, cosine, centred = ("none" if rank is None else f"{rank:.2f}" for rank in ranks)
        best, *others = (-1.0 if rank is None else rank for rank in ranks)
        return (
            self.frozen.describe(f"With all but layers 1 to {self.layer} frozen, the bound of Proposition 1")
            + f" (Its constant was fitted to hold for {COVERAGE:.0%} of other pairs.) "
            + self.full.describe("With all parameters trained, it")
            + f" Rank correlation with the kernel norm of layers 1 to {self.layer}: {similarity} for h'^T Q h, {cosine} "
            f"for the cosine of the states, {centred} for their centred cosine; the proposition's similarity is "
            f"{'' if best > max(others) else 'not '}the best of the three."
        )


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
        before: The check of the base model.
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


def _verdict(similarity: Ratio, kernel: Ratio) -> str:
    if similarity.high is None or kernel.high is None:
        return "Without an interval, it cannot be said whether they fell."
    return {
        (True, True): "Both fell, as the paper says.",
        (True, False): "The kernel did not measurably follow the similarity, unlike what the paper says.",
        (
            False,
            True,
        ): "The kernel fell without a measurable fall of the similarity: something else lowered it.",
        (False, False): "Neither measurably fell, unlike what the paper says.",
    }[similarity.fell, kernel.fell]
