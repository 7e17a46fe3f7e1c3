"""Kernel similarity of prompts, group against group: how far a training step on one prompt moves another's logits.

Rows are the prompts x' whose logits move, columns the prompts x that the step is taken on (Lu et al. 2026). NaN
stands for what could not be measured; it enters no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from discernment.errors import DataError
from discernment.frozen import FiniteFrozen
from discernment.prompts import Label, Prompt
from discernment.prompts.clusters import prompt_clusters
from discernment.statistics.pairs import PairMean, PairSample, interval, pair_mean, square

if TYPE_CHECKING:
    from discernment.kernel.kernel import Kernel

__all__ = [
    "EntangledPair",
    "GroupPair",
    "MatchedPair",
    "MatchedPairs",
    "PairMean",
    "PartShare",
    "group_table",
    "head_share",
    "matched_pairs",
    "most_entangled",
    "part_shares",
    "prompt_clusters",
    "row_normalised",
    "symmetric",
]

Floats = npt.NDArray[np.float64]


class GroupPair(PairMean):
    """The mean over the pairs of two groups of prompts.

    Attributes:
        row: The group whose logits move.
        column: The group that the training step is taken on.
    """

    row: Label
    column: Label


class PartShare(PairMean):
    """The mean share of one group of parameters in the kernel of seemingly toxic with toxic prompts.

    Attributes:
        part: The group of parameters.
    """

    part: str


class MatchedPair(FiniteFrozen):
    """A seemingly toxic prompt (row) and the toxic prompt that it is matched with (column).

    Attributes:
        seemingly_toxic_id: The id of the one.
        toxic_id: The id of the other.
        similarity: Their similarity; None if one of them is unscored.
    """

    seemingly_toxic_id: str
    toxic_id: str
    similarity: float | None


class MatchedPairs(FiniteFrozen):
    """Matched partners beside all other pairs of a seemingly toxic (row) and a toxic prompt (column).

    Attributes:
        pairs: The matched pairs; empty if no prompt has its partner among the prompts.
        matched: Their mean; the bootstrap draws whole pairs.
        unmatched: The mean of the other pairs.
        difference: `matched` minus `unmatched`; None if one of them has no pair.
        difference_low: Lower end of its paired interval: each resample gives both means.
        difference_high: Upper end.
    """

    pairs: tuple[MatchedPair, ...]
    matched: PairMean
    unmatched: PairMean
    difference: float | None
    difference_low: float | None
    difference_high: float | None


class EntangledPair(FiniteFrozen):
    """A prompt that should be answered (row) and a toxic one (column) that are alike to the model.

    Attributes:
        harmless_id: The id of the prompt that should be answered.
        harmless_label: Its label.
        harmless_text: Its text (untrusted).
        toxic_id: The id of the toxic prompt.
        toxic_text: Its text (untrusted).
        similarity: How far a step on the toxic prompt moves the harmless one.
    """

    harmless_id: str
    harmless_label: Label
    harmless_text: str
    toxic_id: str
    toxic_text: str
    similarity: float


# ---------------------------------------------------------------------- similarity


def row_normalised(norms: npt.ArrayLike) -> Floats:
    """The paper's similarity ||K(x_i, x_j)||_F / ||K(x_i, x_i)||_F, which is not symmetric.

    Args:
        norms: ||K(x_i, x_j)||_F, `[n, n]`; NaN for unscored prompts.

    Returns:
        `[n, n]`, 1 on the diagonal; NaN for unscored prompts and in the rows of prompts without any gradient.

    Raises:
        DataError: If `norms` is not square.
    """
    norms, own = _with_own(norms)
    return np.asarray(norms / own[:, None])


def symmetric(norms: npt.ArrayLike) -> Floats:
    """The similarity ||K(x_i, x_j)||_F / sqrt(||K(x_i, x_i)||_F ||K(x_j, x_j)||_F).

    By the inequality of Cauchy and Schwarz it is at most 1, but for the error of norms that are estimates.

    Args:
        norms: As in `row_normalised`.

    Returns:
        `[n, n]`, 1 on the diagonal; NaN for unscored prompts and prompts without any gradient.

    Raises:
        DataError: If `norms` is not square.
    """
    norms, own = _with_own(norms)
    return np.asarray(norms / np.sqrt(np.outer(own, own)))


def _with_own(norms: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The norms, and those of each prompt with itself, NaN where there is nothing to divide by."""
    norms = np.asarray(norms, dtype=np.float64)
    if norms.ndim != 2 or norms.shape[0] != norms.shape[1]:
        raise DataError(
            f"Kernel norms of the shape {norms.shape} cannot be normalised; give one row and one column a prompt."
        )
    own = norms.diagonal()
    return norms, np.where(own > 0, own, np.nan)


# ---------------------------------------------------------------------- means over pairs


def group_table(
    similarity: npt.ArrayLike,
    labels: Sequence[Label],
    clusters: npt.ArrayLike | None = None,
    seed: int = 0,
) -> list[GroupPair]:
    """Mean similarity of every group of prompts with every other and itself.

    Args:
        similarity: `[n, n]`, such as from `row_normalised`; a prompt with NaN on the diagonal is unscored.
        labels: The label of each prompt.
        clusters: Which cluster each prompt belongs to, `[n]`, such as from `prompt_clusters`: they are drawn
            whole. Without it each prompt is its own.
        seed: Fixes the resamples.

    Returns:
        One entry for each ordered pair of the labels that occur, over pairs of different prompts only.

    Raises:
        DataError: If there is no prompt, or the shapes do not fit.
    """
    sample = PairSample(similarity, labels, clusters, seed)
    groups = [label for label in Label if label in labels]
    return [
        GroupPair(row=row, column=column, **dict(sample.mean(row, column)))
        for row in groups
        for column in groups
    ]


def head_share(
    kernel: Kernel, labels: Sequence[Label], clusters: npt.ArrayLike | None = None, seed: int = 0
) -> list[GroupPair]:
    """Mean share of the head in the kernel, by pair of groups.

    Args:
        kernel: The kernel.
        labels: As in `group_table`.
        clusters: As in `group_table`.
        seed: Fixes the resamples.

    Raises:
        DataError: If the kernel was measured without the head, or as `group_table`.
    """
    if "head" not in kernel.parts:
        raise DataError(
            f"The kernel was measured without the head (only {', '.join(kernel.parts)}); measure it with the head "
            "to know its share."
        )
    return group_table(kernel.shares[kernel.parts.index("head")], labels, clusters, seed)


def part_shares(
    kernel: Kernel, labels: Sequence[Label], clusters: npt.ArrayLike | None = None, seed: int = 0
) -> list[PartShare]:
    """Mean share of each group of parameters in the kernel of seemingly toxic with toxic prompts.

    Args:
        kernel: The kernel.
        labels: As in `group_table`.
        clusters: As in `group_table`.
        seed: Fixes the resamples.

    Returns:
        One entry a part, in the kernel's order; the means add up to 1.

    Raises:
        DataError: If there is no toxic or no seemingly toxic prompt, or the shapes do not fit.
    """
    _require(labels, Label.TOXIC, Label.SEEMINGLY_TOXIC)
    return [
        PartShare(
            part=part,
            **dict(PairSample(share, labels, clusters, seed).mean(Label.SEEMINGLY_TOXIC, Label.TOXIC)),
        )
        for part, share in zip(kernel.parts, kernel.shares, strict=True)
    ]


# ---------------------------------------------------------------------- single pairs


def matched_pairs(similarity: npt.ArrayLike, prompts: Sequence[Prompt], seed: int = 0) -> MatchedPairs:
    """Similarity of matched partners beside that of all other seemingly toxic and toxic prompts.

    Partners share their wording, other pairs do not: where they are no more alike than others, the kernel follows
    something else than the wording.

    Args:
        similarity: As in `group_table`.
        prompts: The prompts; pairs are read from their `partner`, clusters are those of `prompt_clusters`.
        seed: Fixes the resamples.

    Raises:
        DataError: If there is no toxic or no seemingly toxic prompt, or the shapes do not fit.
    """
    labels = [p.label for p in prompts]
    _require(labels, Label.TOXIC, Label.SEEMINGLY_TOXIC)
    sample = PairSample(similarity, labels, prompt_clusters(prompts), seed)
    partners = _partners(prompts)
    rows, columns = np.array(partners, dtype=np.intp).reshape(-1, 2).T
    values = sample.values[rows, columns]
    sample.values[rows, columns] = np.nan  # what is left are the others
    unmatched = sample.mean(Label.SEEMINGLY_TOXIC, Label.TOXIC)

    scored = np.isfinite(values)
    resampled = None
    if sample.enough(rows[scored]):
        drawn = sample.drawn[:, rows[scored]]
        with np.errstate(invalid="ignore"):
            resampled = drawn @ values[scored] / drawn.sum(axis=1)
    matched = pair_mean(values, resampled)

    difference = low = high = None
    if matched.mean is not None and unmatched.mean is not None:
        difference = matched.mean - unmatched.mean
        if resampled is not None:
            low, high = interval(resampled - sample.resampled(Label.SEEMINGLY_TOXIC, Label.TOXIC))
    return MatchedPairs(
        pairs=tuple(
            MatchedPair(
                seemingly_toxic_id=prompts[row].id,
                toxic_id=prompts[column].id,
                similarity=float(value) if np.isfinite(value) else None,
            )
            for (row, column), value in zip(partners, values, strict=True)
        ),
        matched=matched,
        unmatched=unmatched,
        difference=difference,
        difference_low=low,
        difference_high=high,
    )


def most_entangled(
    similarity: npt.ArrayLike, prompts: Sequence[Prompt], count: int = 10
) -> list[EntangledPair]:
    """The pairs of a toxic prompt and one that should be answered with the highest similarity, highest first.

    Args:
        similarity: `[n, n]`; NaN for unscored pairs, which are left out.
        prompts: The prompts.
        count: At most so many pairs.

    Raises:
        DataError: If there is no toxic prompt or no other, or the shapes do not fit.
    """
    similarity = square(similarity, len(prompts))
    toxic = np.array([p.label.should_refuse for p in prompts])
    if toxic.all() or not toxic.any():
        missing = "toxic prompt" if not toxic.any() else "prompt that should be answered"
        raise DataError(f"There is no {missing} among the {len(prompts)} prompts; add some.")
    rows, columns = np.nonzero(~toxic[:, None] & toxic & np.isfinite(similarity))
    highest_first = np.argsort(-similarity[rows, columns], kind="stable")[:count]
    return [
        EntangledPair(
            harmless_id=harmless.id,
            harmless_label=harmless.label,
            harmless_text=harmless.text,
            toxic_id=other.id,
            toxic_text=other.text,
            similarity=float(similarity[row, column]),
        )
        for row, column in zip(rows[highest_first], columns[highest_first], strict=True)
        for harmless, other in [(prompts[row], prompts[column])]
    ]


def _partners(prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """Row numbers of matched (seemingly toxic, toxic) prompts, each pair once even if both name each other."""
    position = {p.id: n for n, p in enumerate(prompts)}
    links = [(n, position[p.partner]) for n, p in enumerate(prompts) if p.partner in position]
    return sorted(
        {
            (row, column)
            for a, b in links
            for row, column in ((a, b), (b, a))
            if prompts[row].label is Label.SEEMINGLY_TOXIC and prompts[column].label is Label.TOXIC
        }
    )


def _require(labels: Sequence[Label], *wanted: Label) -> None:
    for label in wanted:
        if label not in labels:
            raise DataError(f"There is no {label} prompt among the {len(labels)} prompts; add some.")
