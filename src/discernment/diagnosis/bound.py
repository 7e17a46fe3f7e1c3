"""Proposition 1 of DCR: does the similarity of activations bound the gradient kernel (Lu et al. 2026)?

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
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from discernment.errors import DataError
from discernment.frozen import FiniteFrozen
from discernment.kernel.kernel import Floats, Kernel

Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

COVERAGE = 0.95
"""The share of calibration pairs for which c is made to hold."""
LOOSE = 10.0
"""A bound that is typically more than so many times the measured norm says little about it."""
ROUNDING = 1e-9


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


class Form(NamedTuple):
    """One form of the bound, held against the measured norms of pairs of prompts.

    Attributes:
        similarity: h'^T Q h, `[pairs]`.
        norms: ||K||_F, `[pairs]`.
        bound: What the form says of them, `[pairs]`.
        failures: Why that is wrong; None where the bound holds.
        check: What it comes to.
    """

    similarity: Floats
    norms: Floats
    bound: Floats
    failures: list[Assumption | None]
    check: BoundCheck


@dataclass(frozen=True)
class Bound:
    """The bound, fitted on calibration prompts, and what enters it of all n prompts.

    Attributes:
        likenesses: How alike two states are, `[3, n, n]`: h_i^T Q h_j, their cosine, and their cosine after the mean
            state of the calibration prompts is subtracted.
        sizes: The norms of the states, `[n]`.
        gradients: ||G||_F, `[n]`.
        sensitivities: The norms of the logits' gradient with respect to the rest, `[n]`.
        constant: c.
        tail_sensitivity: tau.
        feature_norms: The least and the largest norm of a calibration prompt's state.
    """

    likenesses: Floats
    sizes: Floats
    gradients: Floats
    sensitivities: Floats
    constant: float
    tail_sensitivity: float
    feature_norms: tuple[float, float]

    @classmethod
    def fit(cls, full: Kernel, trained: Kernel, layer: int, calibration: Sequence[int]) -> Bound:
        """Fit the bound.

        Args:
            full: The kernel of all parameters, with a tap at l.
            trained: The kernel of layers 1 to l, with the same output rows.
            layer: l, counted from 1.
            calibration: Row numbers of the calibration prompts.

        Raises:
            DataError: If c cannot be fitted.
        """
        states, jacobians = (x.double().cpu().numpy() for x in full.taps[layer])
        through_tail = states @ jacobians[calibration].reshape(-1, states.shape[1]).T
        similarity = through_tail @ through_tail.T / len(calibration)
        sizes = np.linalg.norm(states, axis=1)
        sensitivities = np.sqrt(np.maximum(full.traces.sum(0) - trained.traces.sum(0), 0))
        pairs = all_pairs(calibration)
        centred = states - states[calibration].mean(0)
        return cls(
            likenesses=np.stack([similarity, _cosine(states), _cosine(centred)]),
            sizes=sizes,
            gradients=np.sqrt(trained.traces.sum(0)),
            sensitivities=sensitivities,
            constant=_smallest_constant(trained.norms[pairs], similarity[pairs]),
            tail_sensitivity=float(sensitivities[calibration].max()),
            feature_norms=(float(sizes[calibration].min()), float(sizes[calibration].max())),
        )

    def form(self, pairs: Pairs, kernel: Kernel, *, frozen: bool) -> Form:
        """One form of the bound: the frozen one for a kernel of the trained parameters, the full one for a whole one."""
        first, second = pairs
        norms, likenesses = kernel.norms[pairs], self.likenesses[:, first, second]
        (low, high), c, tau = self.feature_norms, self.constant, self.tail_sensitivity
        bound = c * likenesses[0]
        reasons = {Assumption.SIMILARITY_NOT_POSITIVE: likenesses[0] <= 0}
        if not frozen:
            bound = bound + np.sqrt(c) * tau * (self.gradients[first] + self.gradients[second]) + tau**2
            sensitive = self.sensitivities > tau
            reasons[Assumption.TAIL_SENSITIVITY] = sensitive[first] | sensitive[second]
        unusual = (self.sizes < low) | (self.sizes > high)
        reasons[Assumption.FEATURE_NORM] = unusual[first] | unusual[second]
        failures = [
            next((a for a, applies in reasons.items() if applies[n]), Assumption.LOCAL_LINEARITY)
            if fails
            else None
            for n, fails in enumerate(norms > bound + ROUNDING * np.abs(bound))
        ]
        similarity_rank, cosine_rank, centred_cosine_rank = (_rank_correlation(x, norms) for x in likenesses)
        check = BoundCheck(
            pairs=len(norms),
            holds=failures.count(None) / len(failures),
            tightness=float(np.median(bound[norms > 0] / norms[norms > 0])),
            delta=max(0.0, float((norms - bound).max())),
            similarity_rank=similarity_rank,
            cosine_rank=cosine_rank,
            centred_cosine_rank=centred_cosine_rank,
            failures=dict(Counter(a for a in failures if a is not None).most_common()),
        )
        return Form(likenesses[0], norms, bound, failures, check)


def all_pairs(rows: Sequence[int]) -> Pairs:
    """Row numbers of all pairs of two different prompts."""
    first, second = np.triu_indices(len(rows), k=1)
    return np.asarray(rows)[first], np.asarray(rows)[second]


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


def _rank_correlation(a: Floats, b: Floats) -> float | None:
    from scipy.stats import spearmanr  # a report reads what was found, and has no need of it

    return None if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)
