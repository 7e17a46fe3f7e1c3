"""Diagnosis of a model: does refusal leak from toxic to seemingly toxic prompts, and at which layer do they part?"""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainSerializer, field_validator

from discernment.diagnosis.draw import check_prompts, choose_prompts
from discernment.diagnosis.entanglement import (
    EntangledPair,
    MatchedPairs,
    RowDifference,
    matched_pairs,
    most_entangled,
    steps_on_toxic,
)
from discernment.diagnosis.finding import describe
from discernment.diagnosis.group_rejection import (
    DiscernmentAuroc,
    GroupRejection,
    discernment_aurocs,
    group_rejections,
    rejections,
)
from discernment.diagnosis.separability import (
    LayerSeparation,
    Recommendation,
    layer_states,
    recommend_layer,
    separability,
)
from discernment.diagnosis.similarity import (
    GroupPair,
    PartShare,
    group_table,
    part_shares,
    row_normalised,
    symmetric,
)
from discernment.errors import ModelError
from discernment.frozen import FiniteFrozen, Frozen
from discernment.kernel.checks import check_weights
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import Floats, Kernel, KernelOptions
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.progress import Progress, counting
from discernment.prompts import Label, PromptSet
from discernment.prompts.clusters import prompt_clusters

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
        model: The policy's name.
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
        noise_floor: Largest difference of a kernel entry of two prompts measured alone and in the batch, as a share of
            their largest entry; None if it was not looked at.
        sampling_error: Median relative standard error of the norms, where they are estimates. It does not hold that
            with few probes similarities come out too high; see `probe_inner`.
        cost: What it took.
        finding: What all this says, in a few sentences.
        command: What to do next; by the policy's name, where nobody said how it was called.
    """

    model: str
    prompt_set: str
    prompts: dict[Label, int]
    options: DiagnoseOptions
    unscored: tuple[Unscored, ...]
    rejection: tuple[GroupRejection, ...]
    rankings: tuple[DiscernmentAuroc, ...]
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


def diagnose(
    policy: Policy,
    prompts: PromptSet,
    options: DiagnoseOptions | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure rejection probabilities, the gradient kernel and the separability of the layers.

    The same call gives the same result, but for the seconds in its cost. The model stays as it was.

    Args:
        policy: The policy; its weights must be float32 or float64.
        prompts: Toxic and seemingly toxic prompts, and best some benign ones; never those of a benchmark that is to
            be reported, since a layer is chosen by them.
        options: What to measure.
        out: A directory for the state of an unfinished kernel, from which the same call goes on.
        progress: Called with what is being done, how much of it is done, and how much there is.

    Raises:
        DataError: If there are no toxic or no seemingly toxic prompts, fewer than two of them, or a prompt is longer
            than the model's context.
        ModelError: If the policy's rule makes several models of it, or the model cannot be measured, or gives finite
            values for too few prompts.
    """
    options = options or DiagnoseOptions()
    tell = progress or (lambda what, done, of: None)
    check_prompts(prompts)
    check_weights(policy, options.kernel)
    sequences = policy.encode(prompts.asked)
    policy.check_one_model("The diagnosis", sequences)
    check_context(policy, sequences, names_of(prompts))
    start = time.perf_counter()
    refusals, unscored = rejections(policy, prompts, options.batch_size, tell)
    scored = _scored(policy, prompts, unscored)
    rejected = time.perf_counter()
    contrast = scored.with_label(Label.TOXIC, Label.SEEMINGLY_TOXIC)  # which stage 1 pulls apart
    count = counting(tell, "hidden states", len(contrast))
    states = layer_states(policy, contrast, batch_size=options.batch_size, progress=count)
    layers = separability(states, contrast)
    separated = time.perf_counter()
    chosen = choose_prompts(scored, options.per_group, options.seed)
    kernel = gradient_kernel(
        policy,
        chosen.asked,
        options.kernel,
        resume=out and out / "kernel.safetensors",
        progress=lambda done, of: tell("layers of the kernel", done, of),
    )
    cost = DiagnosisCost(
        rejection_seconds=round(rejected - start, 2),
        separability_seconds=round(separated - rejected, 2),
        kernel_seconds=round(time.perf_counter() - separated, 2),
        backward_passes=kernel.cost.backward_passes,
    )
    unscored |= {chosen[row].id: reason for row, reason in kernel.unscored.items()}
    return _put_together(policy, prompts, chosen, options, unscored, refusals, layers, kernel, cost)


def _scored(policy: Policy, prompts: PromptSet, unscored: dict[str, str]) -> PromptSet:
    scored = PromptSet([p for p in prompts if p.id not in unscored], prompts.provenance)
    counts = scored.counts()
    if unscored and min(counts.get(Label.TOXIC, 0), counts.get(Label.SEEMINGLY_TOXIC, 0)) < 2:
        raise ModelError(
            f"{policy.name} gives values that are not finite for {len(unscored)} of {len(prompts)} prompts, so that "
            "too few are left to compare; it has diverged or overflows."
        )
    return scored


def _put_together(
    policy: Policy,
    prompts: PromptSet,
    chosen: PromptSet,
    options: DiagnoseOptions,
    unscored: dict[str, str],
    refusals: dict[str, float],
    layers: Sequence[LayerSeparation],
    kernel: Kernel,
    cost: DiagnosisCost,
) -> Diagnosis:
    labels = [p.label for p in chosen]
    clusters = prompt_clusters(chosen)
    by_row, even = row_normalised(kernel.norms), symmetric(kernel.norms)
    recommendation = recommend_layer(layers)
    heads = [shares for part, shares in zip(kernel.parts, kernel.shares, strict=True) if part == "head"]
    steps, differences = steps_on_toxic(by_row, labels, clusters, options.seed)
    found = Diagnosis(
        model=policy.name,
        prompt_set=prompts.provenance.note or prompts.provenance.name,
        prompts={Label(label): count for label, count in prompts.counts().items()},
        options=options,
        unscored=tuple(Unscored(prompt_id=key, reason=reason) for key, reason in unscored.items()),
        rejection=tuple(group_rejections(prompts, refusals)),
        rankings=tuple(discernment_aurocs(prompts, refusals, options.seed)),
        separability=tuple(layers),
        recommendation=recommendation,
        kernel_prompts=tuple(KernelPrompt(id=p.id, label=p.label, text=p.whole) for p in chosen),
        output_tokens=_shared_tokens(policy, kernel, options),
        row_normalised=_matrix(by_row),
        symmetric=_matrix(even),
        groups=tuple(group_table(by_row, labels, clusters, options.seed)),
        groups_symmetric=tuple(group_table(even, labels, clusters, options.seed)),
        steps_on_toxic=tuple(steps),
        differences=tuple(differences),
        matched=matched_pairs(by_row, chosen, options.seed),
        head=tuple(group_table(heads[0], labels, clusters, options.seed)) if heads else None,
        parts=tuple(part_shares(kernel, labels, clusters, options.seed)),
        entangled=tuple(most_entangled(by_row, chosen, options.most_entangled)),
        noise_floor=kernel.noise_floor,
        sampling_error=None if kernel.errors is None else float(np.nanmedian(kernel.errors / kernel.norms)),
        cost=cost,
        finding="",
        command=_command(policy, recommendation.layer),
    )
    return found.model_copy(update={"finding": describe(found)})


def _shared_tokens(policy: Policy, kernel: Kernel, options: DiagnoseOptions) -> tuple[str, ...] | None:
    if options.kernel.rows != "shared" or kernel.tokens is None:
        return None
    shared = next(tokens for tokens in kernel.tokens if tokens)
    return tuple(str(policy.chat.tokenizer.decode([token])) for token in shared)


def _matrix(values: Floats) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(v if np.isfinite(v) else None for v in row) for row in values.round(6).tolist())


def _command(policy: Policy, layer: int) -> str:
    """What to do next; the prompts to train on are the verb's own default."""
    command = f"discern refine {shlex.quote(policy.name)} --layer {layer} --out refined"
    if policy.chat.system is not None:
        command += f" --system {shlex.quote(policy.chat.system)}"
    if policy.chat.template == "plain" and policy.chat.tokenizer.chat_template:
        command += " --model-option template=plain"
    return command
