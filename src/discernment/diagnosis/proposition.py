"""Proposition 1 of DCR checked on a model: fitted on half of the prompts, tested on the others; see `bound`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from discernment.diagnosis.bound import COVERAGE, Assumption, Bound, BoundCheck, Form, Pairs, all_pairs
from discernment.errors import DataError, RecipeError
from discernment.frozen import FiniteFrozen
from discernment.kernel.kernel import Kernel, KernelOptions
from discernment.prompts import Label, PromptSet, Split
from discernment.prompts.clusters import prompt_clusters
from discernment.prompts.split import assign_splits

if TYPE_CHECKING:
    from discernment.policies.policy import Policy

FEWEST_PROMPTS = 7
"""A half with fewer has at most 15 pairs, of which 95 % cannot be told from all."""
MOST_PAIRS = 2000
"""Pairs that a result keeps; of more, a sample is kept."""


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


def measure_proposition(
    policy: Policy,
    prompts: PromptSet,
    layer: int,
    options: KernelOptions | None = None,
    *,
    seed: int = 0,
    out: Path | None = None,
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
        out: A directory for the states of the kernels, from which the same call goes on after an interruption.
        progress: Called with the layers done and their number, by each measurement in turn.

    Raises:
        DataError: As `check_proposition`, or if the prompts cannot be halved.
        ModelError: If the layer is out of range, or the kernel cannot be measured.
        RecipeError: If `options` choose layers, or rows other than `shared` and `own`.
    """
    # A report reads what was found without torch.
    from discernment.kernel.engine import gradient_kernel
    from discernment.models.layers import find_layers

    options = options or KernelOptions()
    if options.layers is not None or options.rows not in ("shared", "own"):
        raise RecipeError(
            "Proposition 1 sets the kernel's layers itself and needs single tokens as output rows; leave out `layers` "
            "and choose `shared` or `own` for `rows`."
        )
    find_layers(policy.model, policy.layer_path).check(layer)
    held_out = halves(prompts, seed)
    options = options.model_copy(update={"by_layer": False})
    only_trained = options.model_copy(update={"layers": (1, layer)})
    first, second = (out and out / f"{name}.safetensors" for name in ("full", "trained"))
    full = gradient_kernel(
        policy, prompts.asked, options, taps=[layer], resume=first, keep=True, progress=progress
    )
    trained = gradient_kernel(policy, prompts.asked, only_trained, resume=second, progress=progress)
    if first is not None:
        first.unlink(missing_ok=True)
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
    bound = Bound.fit(full, trained, layer, calibration)
    pairs = all_pairs(test)
    frozen_form = bound.form(pairs, trained, frozen=True)
    full_form = bound.form(pairs, full, frozen=False)
    clusters = prompt_clusters(prompts.prompts)
    return PropositionCheck(
        model=model,
        layer=layer,
        options=options,
        calibration_prompts=len(calibration),
        unscored={prompts[row].id: reason for row, reason in unscored.items()},
        tokens=full.tokens[calibration[0]] if full.tokens and options.rows == "shared" else None,
        constant=bound.constant,
        tail_sensitivity=bound.tail_sensitivity,
        feature_norms=bound.feature_norms,
        frozen=frozen_form.check,
        full=full_form.check,
        pairs=_kept(prompts, pairs, frozen_form, full_form, seed),
        clusters={prompts[row].id: int(clusters[row]) for row in test},
    )


def _kept(prompts: PromptSet, pairs: Pairs, frozen: Form, full: Form, seed: int) -> list[PromptPair]:
    """The pairs that a result keeps, in their order."""
    count = len(frozen.norms)
    return [
        PromptPair(
            first=first.id,
            second=second.id,
            labels=(first.label, second.label),
            similarity=frozen.similarity[n],
            trained_norm=frozen.norms[n],
            frozen_bound=frozen.bound[n],
            frozen_failure=frozen.failures[n],
            full_norm=full.norms[n],
            full_bound=full.bound[n],
            full_failure=full.failures[n],
        )
        for n in np.sort(np.random.default_rng(seed).permutation(count)[:MOST_PAIRS])
        for first, second in [(prompts[pairs[0][n]], prompts[pairs[1][n]])]
    ]


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
