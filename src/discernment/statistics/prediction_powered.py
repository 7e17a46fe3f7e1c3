"""A rate by a judge's verdicts on everything and people's on some of it: prediction-powered inference.

Angelopoulos, Bates, Fannjiang, Jordan and Zrnic (Science 2023), by their package `ppi-python`, within strata (Fisch et al.,
NeurIPS 2024, arXiv 2406.04291). A verdict is taken for what people say of the replies with it, so that it needs no weight
(the lambda of PPI++): that one supposes that the labelled replies are not among the judged ones, which they are here.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from discernment.frozen import Frozen
from discernment.statistics.intervals import LEVEL

PSEUDO_LABELS = 0.5
"""Of each kind and in each stratum, as in Jeffreys' interval: a few labels that all agree are no proof of no error."""

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class PoweredRate(Frozen):
    """A rate that people's labels correct.

    Attributes:
        value: The rate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        labels: How many labels there are, without those where people could not tell.
        could_tell: Of all, the share of which people could tell; the rate is among these.
        to_halve: About how many more of them would halve the interval; None where all that could be had would not.
        kappa: Cohen's kappa of judge and people, as in all of the replies; None where one of them always says the same.
    """

    value: float
    low: float
    high: float
    labels: int
    could_tell: float = 1.0
    to_halve: int | None
    kappa: float | None


def powered_rate(
    judged: Bools, strata: Ints, labelled: Ints, people: Bools, told: Bools | None = None
) -> PoweredRate | None:
    """The rate of which a judge's verdicts are a guess, and people's on a part of them the truth.

    The n are taken for a sample, so that the interval is one of the rate behind them. Where people cannot tell some, the rate is
    that among those which they can: a ratio, whose interval is that of its linear form.

    Args:
        judged: The judge's verdicts, `[n]`.
        strata: Within which the labelled ones were drawn at random, and the judge says the same, `[n]`.
        labelled: Which of the n have labels, `[m]`, each once.
        people: The labels, `[m]`.
        told: Whether people could tell, `[m]`; without it they always could.

    Returns:
        The rate, its interval cut to 0 and 1; None as long as a stratum has no label, or people could tell nothing.
    """
    from ppi_py import ppi_mean_ci

    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    counts = np.bincount(stratum[labelled], minlength=len(sizes))
    told = np.ones(len(labelled), dtype=np.bool_) if told is None else told
    if not told.any() or not counts.all():
        return None
    where, right, known, weights = _with_pseudo_labels(stratum[labelled], people, told, len(sizes))
    totals = np.bincount(where, weights)

    def of_all(values: Floats) -> float:
        return float(sizes @ (np.bincount(where, weights * values) / totals)) / len(stratum)

    share = of_all(known)
    value = of_all(known * right) / share
    said = value + known * (right - value) / share
    expected = np.bincount(where, weights * said) / totals
    weights *= (sizes / totals)[where]
    ends = ppi_mean_ci(
        said,
        expected[where],
        expected[stratum],
        alpha=1 - LEVEL,
        lam=1,
        w=weights / weights.mean(),
    )
    low, high = (float(end[0]) for end in ends)
    of_replies = float(expected[stratum].std()) / math.sqrt(len(stratum))
    more = _to_halve(high - low, of_replies, float(totals.sum()))
    return PoweredRate(
        value=value,
        low=max(0.0, low),
        high=min(1.0, high),
        labels=int(told.sum()),
        could_tell=share,
        to_halve=more if more is not None and len(labelled) + more <= len(strata) else None,
        kappa=_kappa(people[told], judged[labelled][told], (sizes / counts)[stratum[labelled]][told]),
    )


def _with_pseudo_labels(
    strata: Ints, people: Bools, told: Bools, n_strata: int
) -> tuple[Ints, Floats, Floats, Floats]:
    """The stratum, the label, whether it could be told, and the weight of each label, pseudo-labels behind the others."""
    kinds = [(1.0, 1.0), (0.0, 1.0)] + ([] if told.all() else [(0.0, 0.0)])
    pseudo = np.tile(np.array(kinds), (n_strata, 1))
    return (
        np.concatenate([strata, np.arange(n_strata).repeat(len(kinds))]),
        np.concatenate([people, pseudo[:, 0]]),
        np.concatenate([told, pseudo[:, 1]]),
        np.concatenate([np.ones(len(strata)), np.full(len(pseudo), PSEUDO_LABELS)]),
    )


def _to_halve(width: float, of_replies: float, labels: float) -> int | None:
    """More labels that halve an interval: what the replies themselves are too few for, labels cannot mend."""
    from scipy.stats import norm

    variance = (width / 2 / float(norm.ppf((1 + LEVEL) / 2))) ** 2
    left = variance / 4 - of_replies**2
    return None if left <= 0 else math.ceil(labels * ((variance - of_replies**2) / left - 1))


def _kappa(people: Bools, judged: Bools, weights: npt.NDArray[np.float64]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if min(len(np.unique(people)), len(np.unique(judged))) == 1:
        return None
    return float(cohen_kappa_score(people, judged, sample_weight=weights))
