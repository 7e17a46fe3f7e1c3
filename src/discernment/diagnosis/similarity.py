"""Kernel similarity of prompts, group against group: how far a training step on one prompt moves another's logits.

Rows are the prompts x' whose logits move, columns the prompts x that the step is taken on (Lu et al. 2026). NaN
stands for what could not be measured; it enters no mean.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from discernment.errors import DataError
from discernment.kernel.kernel import Floats, Kernel
from discernment.prompts import Label
from discernment.statistics.pairs import PairMean, PairSample


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


def group_table(
    similarity: npt.ArrayLike, labels: Sequence[Label], clusters: npt.ArrayLike | None = None, seed: int = 0
) -> list[GroupPair]:
    """Mean similarity of every group of prompts with every other and itself.

    Args:
        similarity: `[n, n]`, such as from `row_normalised`, or another value of each pair, such as the share of a
            part of the model in their kernel; a prompt with NaN on the diagonal is unscored.
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


def part_shares(
    kernel: Kernel, labels: Sequence[Label], clusters: npt.ArrayLike | None = None, seed: int = 0
) -> list[PartShare]:
    """Mean share of each group of parameters in the kernel of seemingly toxic with toxic prompts.

    Args:
        kernel: The kernel.
        labels: The label of each prompt.
        clusters: As in `group_table`.
        seed: Fixes the resamples.

    Returns:
        One entry a part, in the kernel's order; the means add up to 1.

    Raises:
        DataError: If there is no toxic or no seemingly toxic prompt, or the shapes do not fit.
    """
    require_labels(labels, Label.TOXIC, Label.SEEMINGLY_TOXIC)
    return [
        PartShare(
            part=part,
            **dict(PairSample(share, labels, clusters, seed).mean(Label.SEEMINGLY_TOXIC, Label.TOXIC)),
        )
        for part, share in zip(kernel.parts, kernel.shares, strict=True)
    ]


def require_labels(labels: Sequence[Label], *wanted: Label) -> None:
    """Make sure that there is a prompt of each wanted label.

    Raises:
        DataError: If there is none.
    """
    for label in wanted:
        if label not in labels:
            raise DataError(f"There is no {label} prompt among the {len(labels)} prompts; add some.")
