"""What a diagnosis is made by, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, field_validator

from discernment.diagnosis.separability import LayerSeparation, Recommendation
from discernment.diagnosis.similarity import EntangledPair, GroupPair, MatchedPairs, PartShare
from discernment.frozen import FiniteFrozen, Frozen
from discernment.kernel.kernel import KernelOptions
from discernment.prompts import Label
from discernment.statistics.pairs import PairMean

__all__ = [
    "DiagnoseOptions",
    "Diagnosis",
    "DiagnosisCost",
    "GroupRejection",
    "KernelPrompt",
    "Ranking",
    "RowDifference",
    "Unscored",
]

AS_OBJECT = PlainSerializer(lambda row: row._asdict(), return_type=dict[str, Any])
"""Writes a named tuple with its names."""

Matrix = tuple[tuple[float | None, ...], ...]


class DiagnoseOptions(Frozen):
    """What is measured of a model, and on how many prompts."""

    kernel: KernelOptions = Field(
        default_factory=lambda: KernelOptions(by_layer=True),
        description="Which gradient kernel; it is broken down by layer unless `by_layer` says otherwise.",
    )
    per_group: int = Field(16, ge=1, description="Prompts of each label whose gradient kernel is measured.")
    batch_size: int = Field(32, ge=1, description="Prompts a forward pass for the other measurements.")
    most_entangled: int = Field(10, ge=0, description="Pairs to name.")
    seed: int = Field(0, description="Seed of the draw of prompts and of the resamples.")

    @field_validator("kernel", mode="before")
    @classmethod
    def _by_layer(cls, value: Any) -> Any:
        return {"by_layer": True, **value} if isinstance(value, dict) else value

    @field_validator("kernel")
    @classmethod
    def _without_replies(cls, value: KernelOptions) -> KernelOptions:
        if value.rows == "likelihood":
            raise ValueError(
                "`rows: likelihood` is about replies, which a diagnosis does not look at; use other rows"
            )
        return value


class Unscored(FiniteFrozen):
    """A prompt that could not be measured.

    Attributes:
        prompt_id: Its id.
        reason: Why, in words.
    """

    prompt_id: str
    reason: str


class GroupRejection(FiniteFrozen):
    """Rejection probabilities of the prompts of one label.

    Attributes:
        label: The label.
        prompts: How many were scored.
        mean: Their mean.
        lower_quartile: A quarter of them lies below.
        median: Half of them lie below.
        upper_quartile: Three quarters of them lie below.
    """

    label: Label
    prompts: int
    mean: float
    lower_quartile: float
    median: float
    upper_quartile: float


class Ranking(PairMean):
    """Discernment AUROC: how often a toxic prompt has a higher rejection probability than one of another label.

    Attributes:
        harmless: The other label.
    """

    harmless: Label


class RowDifference(FiniteFrozen):
    """How much further a step on a toxic prompt moves seemingly toxic prompts than those of another label.

    Attributes:
        against: The other label.
        difference: Difference of the mean row-normalised similarities; None if one of them is not known.
        low: Lower end of its paired 95 % interval; None with fewer than ten clusters of a label.
        high: Upper end.
    """

    against: Label
    difference: float | None
    low: float | None
    high: float | None


class KernelPrompt(FiniteFrozen):
    """A prompt in the order of the similarity matrices.

    Attributes:
        id: Its id.
        label: Its label.
        text: Its text (untrusted).
    """

    id: str
    label: Label
    text: str


class DiagnosisCost(FiniteFrozen):
    """What a diagnosis took.

    Attributes:
        rejection_seconds: Seconds for the rejection probabilities.
        separability_seconds: Seconds for the hidden states, and the probes on them.
        kernel_seconds: Seconds for the kernel, of this attempt if an earlier one was interrupted.
        backward_passes: Backward passes of one prompt and one output row.
    """

    rejection_seconds: float
    separability_seconds: float
    kernel_seconds: float
    backward_passes: int


class Diagnosis(FiniteFrozen):
    """Why a model refuses more than it should, as far as its gradients and hidden states tell.

    Attributes:
        model: The model's name.
        prompt_set: What the prompts are called.
        prompts: How many prompts each label has.
        options: How it was measured.
        unscored: Prompts without values. They are in no number.
        rejection: Rejection probabilities by label.
        rankings: Discernment AUROC of toxic prompts against each other label.
        separability: How far toxic lie from seemingly toxic prompts, layer by layer.
        recommendation: The layer for stage 1.
        kernel_prompts: The prompts of the matrices, in order: group by group, matched pairs at the same places.
        output_tokens: The tokens whose logits are looked at, likeliest first; None where prompts do not share them.
        row_normalised: ||K(x', x)|| / ||K(x', x')||, a row for each x', the prompt that is moved.
        symmetric: ||K(x', x)|| / sqrt(||K(x', x')|| ||K(x, x)||).
        groups: Means of `row_normalised` by pair of groups.
        groups_symmetric: Means of `symmetric` by pair of groups.
        steps_on_toxic: Means of `row_normalised` for steps on toxic prompts, by the group that is moved. Pairs that
            share their wording (matched pairs, one frame) are left out: they are alike whatever they ask for.
        differences: Seemingly toxic against the other groups of `steps_on_toxic`.
        matched: Matched pairs beside the other pairs, row-normalised.
        head: Share of the head by pair of groups; None if the kernel was measured without it.
        parts: Share of each group of parameters, for seemingly toxic rows and toxic columns.
        entangled: The pairs with the highest row-normalised similarity.
        noise_floor: Largest relative difference of a kernel entry measured alone and in the batch; None if it
            was not looked at.
        sampling_error: Median relative standard error of the norms, where they are estimates.
        cost: What it took.
        finding: What all this says, in a few sentences.
        command: What to do next.
    """

    model: str
    prompt_set: str
    prompts: dict[Label, int]
    options: DiagnoseOptions
    unscored: tuple[Unscored, ...]
    rejection: tuple[GroupRejection, ...]
    rankings: tuple[Ranking, ...]
    separability: tuple[Annotated[LayerSeparation, AS_OBJECT], ...]
    recommendation: Annotated[Recommendation, AS_OBJECT]
    kernel_prompts: tuple[KernelPrompt, ...]
    output_tokens: tuple[str, ...] | None
    row_normalised: Matrix
    symmetric: Matrix
    groups: tuple[GroupPair, ...]
    groups_symmetric: tuple[GroupPair, ...]
    steps_on_toxic: tuple[GroupPair, ...]
    differences: tuple[RowDifference, ...]
    matched: MatchedPairs
    head: tuple[GroupPair, ...] | None
    parts: tuple[PartShare, ...]
    entangled: tuple[EntangledPair, ...]
    noise_floor: float | None
    sampling_error: float | None
    cost: DiagnosisCost
    finding: str
    command: str
