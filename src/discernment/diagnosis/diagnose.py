"""Diagnosis of a model: does refusal leak from toxic to seemingly toxic prompts, and at which layer do they part?"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from discernment.diagnosis.diagnose_types import (
    DiagnoseOptions,
    Diagnosis,
    DiagnosisCost,
    GroupRejection,
    KernelPrompt,
    Ranking,
    RowDifference,
    Unscored,
)
from discernment.diagnosis.draw import draw_pairs_first
from discernment.diagnosis.finding import describe
from discernment.diagnosis.separability import (
    LayerSeparation,
    layer_states,
    recommend_layer,
    separability,
)
from discernment.diagnosis.similarity import (
    GroupPair,
    group_table,
    head_share,
    matched_pairs,
    most_entangled,
    part_shares,
    row_normalised,
    symmetric,
)
from discernment.errors import DataError, ModelError
from discernment.kernel.engine import check_lengths, gradient_kernel
from discernment.kernel.kernel import Kernel
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, Prompt, PromptSet
from discernment.prompts.clusters import prompt_clusters
from discernment.statistics.pairs import PairSample, interval

__all__ = ["DiagnoseOptions", "Diagnosis", "check_prompts", "choose_prompts", "diagnose"]

Floats = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]

NOT_FINITE = "the model's values for it are not finite"


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
        ModelError: If the model cannot be measured, or gives finite values for too few prompts.
    """
    options = options or DiagnoseOptions()
    tell = progress or (lambda what, done, of: None)
    _check(policy, prompts)
    start = time.perf_counter()
    rejections, unscored = _rejections(policy, prompts, options, tell)
    scored = _scored(policy, prompts, unscored)
    rejected = time.perf_counter()
    layers = _separability(policy, scored, options, tell)
    separated = time.perf_counter()
    chosen = choose_prompts(scored, options.per_group, options.seed)
    kernel = gradient_kernel(
        policy,
        chosen.texts,
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
    return _put_together(policy, prompts, chosen, options, unscored, rejections, layers, kernel, cost)


def choose_prompts(prompts: PromptSet, per_group: int, seed: int) -> PromptSet:
    """Draw prompts of each label: matched pairs first, both sides together, and from as many wording frames as can be.

    Args:
        prompts: What to draw from.
        per_group: At most so many of each label.
        seed: Seed of the draw.

    Returns:
        The prompts label by label; partners stand at the same places within their labels.
    """
    drawn, place = draw_pairs_first(prompts, seed)
    cluster = dict(zip((p.id for p in drawn), prompt_clusters(drawn).tolist(), strict=True))
    chosen: list[Prompt] = []
    for group in Label:
        members = sorted((p for p in drawn if p.label is group), key=place)
        taken: Counter[int] = Counter()
        turns = {}
        for prompt in members:
            turns[prompt.id] = taken[cluster[prompt.id]]
            taken[cluster[prompt.id]] += 1
        members.sort(key=lambda p: (place(p)[0], turns[p.id], place(p)[1]))
        chosen += members[:per_group]
    return PromptSet(chosen, prompts.provenance)


# ---------------------------------------------------------------------- measuring


def check_prompts(prompts: PromptSet) -> None:
    """Make sure that a diagnosis has what it compares.

    Raises:
        DataError: If there are fewer than two toxic or fewer than two seemingly toxic prompts.
    """
    name, counts = prompts.provenance.name, prompts.counts()
    for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC):
        found = counts.get(label, 0)
        if found < 2:
            raise DataError(
                f"A diagnosis compares toxic with seemingly toxic prompts, two of each at least, and {name} has "
                f"{found or 'no'} {label} {'one' if found == 1 else 'ones'}; {prompts.summary()}."
            )


def _check(policy: Policy, prompts: PromptSet) -> None:
    check_prompts(prompts)
    names = [f"{p.id!r} of {prompts.provenance.name}" for p in prompts]
    check_lengths(policy, policy.encode(prompts.texts), names)


def _rejections(
    policy: Policy, prompts: PromptSet, options: DiagnoseOptions, tell: Progress
) -> tuple[dict[str, float], dict[str, str]]:
    """Rejection probabilities by prompt id, and why a prompt has none."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell("rejection probabilities", done, len(prompts))

    try:
        found = rejection_probability(policy, prompts.texts, batch_size=options.batch_size, progress=count)
        return {p.id: value for p, value in zip(prompts, found, strict=True)}, {}
    except ModelError:  # one prompt without finite values ends the call for all
        values: dict[str, float] = {}
        unscored: dict[str, str] = {}
        for number, prompt in enumerate(prompts, start=1):
            tell("rejection probabilities, one by one", number, len(prompts))
            try:
                values[prompt.id] = rejection_probability(policy, [prompt.text])[0]
            except ModelError:
                unscored[prompt.id] = NOT_FINITE
        return values, unscored


def _scored(policy: Policy, prompts: PromptSet, unscored: dict[str, str]) -> PromptSet:
    scored = PromptSet([p for p in prompts if p.id not in unscored], prompts.provenance)
    counts = scored.counts()
    if unscored and min(counts.get(Label.TOXIC, 0), counts.get(Label.SEEMINGLY_TOXIC, 0)) < 2:
        raise ModelError(
            f"{policy.name} gives values that are not finite for {len(unscored)} of {len(prompts)} prompts, so that "
            "too few are left to compare; it has diverged or overflows."
        )
    return scored


def _separability(
    policy: Policy, prompts: PromptSet, options: DiagnoseOptions, tell: Progress
) -> list[LayerSeparation]:
    """Of toxic and seemingly toxic prompts, which stage 1 pulls apart."""
    contrast = prompts.with_label(Label.TOXIC, Label.SEEMINGLY_TOXIC)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell("hidden states", done, len(contrast))

    states = layer_states(policy, contrast, batch_size=options.batch_size, progress=count)
    return separability(states, contrast)


# ---------------------------------------------------------------------- putting together


def _put_together(
    policy: Policy,
    prompts: PromptSet,
    chosen: PromptSet,
    options: DiagnoseOptions,
    unscored: dict[str, str],
    rejections: dict[str, float],
    layers: Sequence[LayerSeparation],
    kernel: Kernel,
    cost: DiagnosisCost,
) -> Diagnosis:
    labels = [p.label for p in chosen]
    clusters = prompt_clusters(chosen)
    by_row, even = row_normalised(kernel.norms), symmetric(kernel.norms)
    recommendation = recommend_layer(layers)
    steps, differences = _steps_on_toxic(by_row, labels, clusters, options.seed)
    found = Diagnosis(
        model=policy.name,
        prompt_set=prompts.provenance.note or prompts.provenance.name,
        prompts={Label(label): count for label, count in prompts.counts().items()},
        options=options,
        unscored=tuple(Unscored(prompt_id=key, reason=reason) for key, reason in unscored.items()),
        rejection=tuple(_by_group(prompts, rejections)),
        rankings=tuple(_rankings(prompts, rejections, options.seed)),
        separability=tuple(layers),
        recommendation=recommendation,
        kernel_prompts=tuple(KernelPrompt(id=p.id, label=p.label, text=p.text) for p in chosen),
        output_tokens=_shared_tokens(policy, kernel, options),
        row_normalised=_matrix(by_row),
        symmetric=_matrix(even),
        groups=tuple(group_table(by_row, labels, clusters, options.seed)),
        groups_symmetric=tuple(group_table(even, labels, clusters, options.seed)),
        steps_on_toxic=tuple(steps),
        differences=tuple(differences),
        matched=matched_pairs(by_row, chosen, options.seed),
        head=tuple(head_share(kernel, labels, clusters, options.seed)) if "head" in kernel.parts else None,
        parts=tuple(part_shares(kernel, labels, clusters, options.seed)),
        entangled=tuple(most_entangled(by_row, chosen, options.most_entangled)),
        noise_floor=kernel.noise_floor,
        sampling_error=None if kernel.errors is None else float(np.nanmedian(kernel.errors / kernel.norms)),
        cost=cost,
        finding="",
        command=_command(policy, recommendation.layer),
    )
    return found.model_copy(update={"finding": describe(found)})


def _by_group(prompts: PromptSet, rejections: dict[str, float]) -> list[GroupRejection]:
    groups = []
    for label in Label:
        values = [rejections[p.id] for p in prompts if p.label is label and p.id in rejections]
        if values:
            lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
            groups.append(
                GroupRejection(
                    label=label,
                    prompts=len(values),
                    mean=float(np.mean(values)),
                    lower_quartile=float(lower),
                    median=float(median),
                    upper_quartile=float(upper),
                )
            )
    return groups


def _rankings(prompts: PromptSet, rejections: dict[str, float], seed: int) -> list[Ranking]:
    """The AUROC as what it is: the share of pairs in which the toxic prompt comes out higher, ties counting half."""
    scored = [p for p in prompts if p.id in rejections]
    values = np.array([rejections[p.id] for p in scored])
    higher = (np.sign(values[:, None] - values) + 1) / 2
    sample = PairSample(higher, [p.label for p in scored], prompt_clusters(scored), seed)
    return [
        Ranking(harmless=label, **dict(sample.mean(Label.TOXIC, label)))
        for label in (Label.SEEMINGLY_TOXIC, Label.BENIGN)
        if any(p.label is label for p in scored)
    ]


def _steps_on_toxic(
    similarity: Floats, labels: Sequence[Label], clusters: npt.NDArray[np.int64], seed: int
) -> tuple[list[GroupPair], list[RowDifference]]:
    """How far steps on toxic prompts move each group, and seemingly toxic prompts more than the others."""
    of_one_wording = (clusters[:, None] == clusters) & ~np.eye(len(clusters), dtype=bool)
    sample = PairSample(np.where(of_one_wording, np.nan, similarity), labels, clusters, seed)
    steps = {
        label: GroupPair(row=label, column=Label.TOXIC, **dict(sample.mean(label, Label.TOXIC)))
        for label in Label
        if label in labels
    }
    ours = steps.pop(Label.SEEMINGLY_TOXIC)
    differences = []
    for against, theirs in steps.items():
        difference = low = high = None
        if ours.mean is not None and theirs.mean is not None:
            difference = ours.mean - theirs.mean
        if difference is not None and ours.low is not None and theirs.low is not None:
            low, high = interval(
                sample.resampled(Label.SEEMINGLY_TOXIC, Label.TOXIC) - sample.resampled(against, Label.TOXIC)
            )
        differences.append(RowDifference(against=against, difference=difference, low=low, high=high))
    return [ours, *steps.values()], differences


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
