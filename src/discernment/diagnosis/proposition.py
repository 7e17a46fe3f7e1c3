"""Proposition 1 of DCR, measured: does the similarity of activations bound the gradient kernel (Lu et al. 2026)?

    ||K(x', x)||_F  <=  c h'^T Q h  +  sqrt(c) tau (||G'||_F + ||G||_F)  +  tau^2  +  Delta        for a layer l

The appendix that states it in full is not public. Our reading:

- K is the gradient kernel at the first generated token. Its parameters are the *trained* ones, those of layers 1 to l
  as in stage 1, and *the rest*: embeddings, later layers, norm and head. The embeddings belong to the rest because
  stage 1 leaves them alone by default, and because they are often tied to the head.
- h is the state after layer l at the last prompt token. Q is the mean of J^T J over calibration prompts, where
  J = dz/dh is the tail's Jacobian; so Q is positive semidefinite.
- G is the gradient of the logits with respect to the trained parameters; tau, the tail sensitivity, is the largest
  norm of their gradient with respect to the rest among the calibration prompts.
- c is fitted on calibration pairs. Delta, what is left over, counts as 0 in the prediction and is reported.

With the rest frozen, tau is 0. This *frozen* form, ||K(x', x)||_F <= c h'^T Q h + Delta, is held against the kernel of
the trained parameters alone, and the *full* form against the whole kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from discernment.diagnosis.proposition_results import (
    COVERAGE,
    Assumption,
    BoundCheck,
    GroupChange,
    PromptPair,
    PropositionCheck,
    PropositionComparison,
    Ratio,
)
from discernment.errors import DataError, RecipeError
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import Kernel, KernelOptions
from discernment.models.layers import find_layers
from discernment.policies.policy import Policy
from discernment.prompts import Label, PromptSet, Split
from discernment.prompts.clusters import prompt_clusters
from discernment.prompts.split import assign_splits
from discernment.statistics.pairs import PairSample, interval

__all__ = [
    "Assumption",
    "BoundCheck",
    "GroupChange",
    "PromptPair",
    "PropositionCheck",
    "PropositionComparison",
    "Ratio",
    "check_proposition",
    "compare_propositions",
    "halves",
    "measure_proposition",
]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

FEWEST_PROMPTS = 7
"""A half with fewer has at most 15 pairs, of which 95 % cannot be told from all."""
MOST_PAIRS = 2000
"""Pairs that a result keeps; of more, a sample is kept."""
ROUNDING = 1e-9


def measure_proposition(
    policy: Policy,
    prompts: PromptSet,
    layer: int,
    options: KernelOptions | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PropositionCheck:
    """Fit Proposition 1 on half of the prompts and test it on the other half.

    The halves are balanced in labels; matched partners, frames and key words stay together. The kernel is measured
    twice, whole and for layers 1 to l, because the Frobenius norms of layers do not add up to that of their sum.

    Args:
        policy: The policy, before or after stage 1.
        prompts: Toxic and seemingly toxic prompts, and benign ones if wanted.
        layer: l, counted from 1.
        options: How to measure the kernels.
        seed: Which of the equally good halves, and which pairs are kept if there are too many.
        progress: Called with the layers done and their number, by each measurement in turn.

    Raises:
        DataError: As `check_proposition`, or if the prompts cannot be halved.
        ModelError: If the layer is out of range, or the kernel cannot be measured.
        RecipeError: If `options` choose layers, or rows other than `shared` and `own`.
    """
    options = options or KernelOptions()
    if options.layers is not None or options.rows not in ("shared", "own"):
        raise RecipeError(
            "Proposition 1 sets the kernel's layers itself and needs single tokens as output rows; leave out `layers` "
            "and choose `shared` or `own` for `rows`."
        )
    find_layers(policy.model).check(layer)
    held_out = halves(prompts, seed)
    options = options.model_copy(update={"by_layer": False})
    only_trained = options.model_copy(update={"layers": (1, layer)})
    full = gradient_kernel(policy, prompts.texts, options, taps=[layer], progress=progress)
    trained = gradient_kernel(policy, prompts.texts, only_trained, progress=progress)
    return check_proposition(prompts, held_out, layer, full, trained, options, model=policy.name, seed=seed)


def halves(prompts: PromptSet, seed: int = 0) -> list[bool]:
    """Which prompts are held out for the test; the others calibrate.

    Args:
        prompts: The prompts.
        seed: Which of the equally good halves.

    Raises:
        DataError: If the prompts cannot be halved, or a half is too small or lacks a label.
    """
    split = assign_splits(prompts, {Split.VALIDATION: 0.5, Split.TEST: 0.5}, seed)
    held_out = [p.split is Split.TEST for p in split]
    _sides(prompts, held_out, {})
    return held_out


def check_proposition(
    prompts: PromptSet,
    held_out: Sequence[bool],
    layer: int,
    full: Kernel,
    trained: Kernel,
    options: KernelOptions,
    *,
    model: str,
    seed: int = 0,
) -> PropositionCheck:
    """Fit and test Proposition 1 on kernels that are measured already.

    Args:
        prompts: The n prompts.
        held_out: Whether each is a test prompt; the others calibrate.
        layer: l, counted from 1.
        full: The kernel of all parameters, with a tap at l.
        trained: The kernel of layers 1 to l, with the same output rows.
        options: How `full` was measured.
        model: The policy's name.
        seed: Which pairs are kept if there are too many.

    Raises:
        DataError: If a half has too few scored prompts or lacks a label, or c cannot be fitted.
    """
    unscored = full.unscored | trained.unscored
    calibration, test = _sides(prompts, held_out, unscored)
    states, jacobians = (x.double().cpu().numpy() for x in full.taps[layer])
    similarity = _bilinear(states, jacobians[calibration])
    sizes = np.linalg.norm(states, axis=1)
    gradients = np.sqrt(trained.traces.sum(0))
    sensitivities = np.sqrt(np.maximum(full.traces.sum(0) - trained.traces.sum(0), 0))

    pairs = _pairs(calibration)
    c = _smallest_constant(trained.norms[pairs], similarity[pairs])
    tau = float(sensitivities[calibration].max())
    low, high = float(sizes[calibration].min()), float(sizes[calibration].max())

    pairs = first, second = _pairs(test)
    alike = similarity[pairs]
    trained_norms, full_norms = trained.norms[pairs], full.norms[pairs]
    frozen_bound = c * alike
    full_bound = frozen_bound + np.sqrt(c) * tau * (gradients[first] + gradients[second]) + tau**2
    sensitive, unusual = sensitivities > tau, (sizes < low) | (sizes > high)
    reasons = {
        Assumption.SIMILARITY_NOT_POSITIVE: alike <= 0,
        Assumption.TAIL_SENSITIVITY: sensitive[first] | sensitive[second],
        Assumption.FEATURE_NORM: unusual[first] | unusual[second],
    }
    full_failures = _failures(full_norms, full_bound, reasons)
    del reasons[Assumption.TAIL_SENSITIVITY]  # a frozen tail has none
    frozen_failures = _failures(trained_norms, frozen_bound, reasons)
    likenesses = alike, _cosine(states)[pairs], _cosine(states - states[calibration].mean(0))[pairs]
    kept = np.sort(np.random.default_rng(seed).permutation(len(alike))[:MOST_PAIRS])
    clusters = prompt_clusters(prompts.prompts)
    return PropositionCheck(
        model=model,
        layer=layer,
        options=options,
        calibration_prompts=len(calibration),
        unscored={prompts[row].id: reason for row, reason in unscored.items()},
        tokens=full.tokens[calibration[0]] if full.tokens and options.rows == "shared" else None,
        constant=c,
        tail_sensitivity=tau,
        feature_norms=(low, high),
        frozen=_bound_check(trained_norms, frozen_bound, frozen_failures, *likenesses),
        full=_bound_check(full_norms, full_bound, full_failures, *likenesses),
        pairs=[
            PromptPair(
                first=prompts[first[n]].id,
                second=prompts[second[n]].id,
                labels=(prompts[first[n]].label, prompts[second[n]].label),
                similarity=alike[n],
                trained_norm=trained_norms[n],
                frozen_bound=frozen_bound[n],
                frozen_failure=frozen_failures[n],
                full_norm=full_norms[n],
                full_bound=full_bound[n],
                full_failure=full_failures[n],
            )
            for n in kept
        ],
        clusters={prompts[row].id: int(clusters[row]) for row in test},
    )


def compare_propositions(
    before: PropositionCheck, after: PropositionCheck, *, seed: int = 0
) -> PropositionComparison:
    """Say what stage 1 did to both sides of the bound.

    Args:
        before: The check of the base model.
        after: The check of the refined model, with the same prompts, layer, seed and options.
        seed: Fixes the resamples of the intervals.

    Raises:
        DataError: If the checks differ in layer or options, or share no pair of a toxic and a seemingly toxic prompt.
    """
    cross = (Label.TOXIC, Label.SEEMINGLY_TOXIC)
    common = _pair_ids(before) & _pair_ids(after)
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


def _sides(
    prompts: PromptSet, held_out: Sequence[bool], unscored: Mapping[int, str]
) -> tuple[list[int], list[int]]:
    """Row numbers of the scored calibration and test prompts, in the order of their labels."""
    order = list(Label)
    rows = [row for row in range(len(prompts)) if row not in unscored]
    rows.sort(key=lambda row: order.index(prompts[row].label))
    sides = [row for row in rows if not held_out[row]], [row for row in rows if held_out[row]]
    for side, name in zip(sides, ("calibration", "test"), strict=True):
        found = {prompts[row].label for row in side}
        if len(side) < FEWEST_PROMPTS or not found >= {Label.TOXIC, Label.SEEMINGLY_TOXIC}:
            raise DataError(
                f"{prompts.provenance.name} is too small for Proposition 1: each half needs at least {FEWEST_PROMPTS} "
                f"scored prompts, toxic and seemingly toxic ones among them, but the {name} half has {len(side)} "
                f"({', '.join(sorted(found)) or 'none'}); add prompts."
            )
    return sides


def _pairs(rows: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers of all pairs of two different prompts."""
    first, second = np.triu_indices(len(rows), k=1)
    return np.asarray(rows)[first], np.asarray(rows)[second]


def _bilinear(states: Floats, jacobians: Floats) -> Floats:
    """h_i^T Q h_j, `[n, n]`, from h `[n, hidden]` and the J `[calibration prompts, rows, hidden]` that make up Q."""
    through_tail = states @ jacobians.reshape(-1, jacobians.shape[-1]).T
    return np.asarray(through_tail @ through_tail.T / len(jacobians))


def _cosine(states: Floats) -> Floats:
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


def _smallest_constant(norms: Floats, similarity: Floats) -> float:
    """The smallest c with norm <= c * similarity for 95 % of the pairs whose similarity is positive."""
    positive = similarity > 0
    ratios = norms[positive] / similarity[positive]
    c = float(np.quantile(ratios, COVERAGE, method="inverted_cdf")) if positive.any() else 0.0
    if c == 0:
        raise DataError(
            "The constant of Proposition 1 cannot be fitted, because h'^T Q h is positive for no calibration pair that "
            "has a kernel; choose another layer or other prompts."
        )
    return c


def _failures(norms: Floats, bound: Floats, reasons: Mapping[Assumption, Flags]) -> list[Assumption | None]:
    """For each pair, what fails; None where the bound holds."""
    return [
        next((a for a, applies in reasons.items() if applies[n]), Assumption.LOCAL_LINEARITY)
        if fails
        else None
        for n, fails in enumerate(norms > bound + ROUNDING * np.abs(bound))
    ]


def _bound_check(
    norms: Floats,
    bound: Floats,
    failures: Sequence[Assumption | None],
    similarity: Floats,
    cosine: Floats,
    centred_cosine: Floats,
) -> BoundCheck:
    return BoundCheck(
        pairs=len(norms),
        holds=failures.count(None) / len(failures),
        tightness=float(np.median(bound[norms > 0] / norms[norms > 0])),
        delta=max(0.0, float((norms - bound).max())),
        similarity_rank=_rank_correlation(similarity, norms),
        cosine_rank=_rank_correlation(cosine, norms),
        centred_cosine_rank=_rank_correlation(centred_cosine, norms),
        failures=dict(Counter(a for a in failures if a is not None).most_common()),
    )


def _rank_correlation(a: Floats, b: Floats) -> float | None:
    return None if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _pair_ids(check: PropositionCheck) -> set[tuple[str, str]]:
    return {(p.first, p.second) for p in check.pairs}


def _ratio(before: PairSample, after: PairSample, row: Label, column: Label) -> Ratio:
    """Ratio of the means over the pairs of two labels; both samples have the same resamples."""
    old, new = before.mean(row, column).mean, after.mean(row, column).mean
    if old is None or new is None or old <= 0:
        return Ratio(value=None, low=None, high=None)
    resampled = before.resampled(row, column)
    safe = before.enough(before.rows(row), before.rows(column)) and not (resampled <= 0).any()
    low, high = interval(after.resampled(row, column) / resampled if safe else None)
    return Ratio(value=new / old, low=low, high=high)
