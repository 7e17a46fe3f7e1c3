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


class PoweredRate(Frozen):
    """A rate that people's labels correct.

    Attributes:
        value: The rate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        labels: How many labels there are.
        to_halve: About how many more of them would halve the interval; None where all that could be had would not.
        kappa: Cohen's kappa of judge and people, as in all of the replies; None where one of them always says the same.
    """

    value: float
    low: float
    high: float
    labels: int
    to_halve: int | None
    kappa: float | None


def powered_rate(judged: Bools, strata: Ints, labelled: Ints, people: Bools) -> PoweredRate | None:
    """The rate of which a judge's verdicts are a guess, and people's on a part of them the truth.

    The n are taken for a sample, so that the interval is one of the rate behind them.

    Args:
        judged: The judge's verdicts, `[n]`.
        strata: Within which the labelled ones were drawn at random, and the judge says the same, `[n]`.
        labelled: Which of the n have labels, `[m]`, each once.
        people: The labels, `[m]`.

    Returns:
        The rate, its interval cut to 0 and 1; None as long as a stratum has no label.
    """
    from ppi_py import ppi_mean_ci

    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    counts = np.bincount(stratum[labelled], minlength=len(sizes))
    if len(labelled) == 0 or not counts.all():
        return None
    pseudo = np.arange(len(sizes)).repeat(2)
    said = np.concatenate([people, np.tile([True, False], len(sizes))]).astype(float)
    where = np.concatenate([stratum[labelled], pseudo])
    weights = np.concatenate([np.ones(len(labelled)), np.full(len(pseudo), PSEUDO_LABELS)])
    totals = np.bincount(where, weights)
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
        value=float(expected[stratum].mean()),
        low=max(0.0, low),
        high=min(1.0, high),
        labels=len(labelled),
        to_halve=more if more is not None and len(labelled) + more <= len(strata) else None,
        kappa=_kappa(people, judged[labelled], (sizes / counts)[stratum[labelled]]),
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
