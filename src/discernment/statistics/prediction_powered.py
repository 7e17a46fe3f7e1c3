"""A rate by a judge's verdicts on everything and people's on some of it: prediction-powered inference.

Angelopoulos, Bates, Fannjiang, Jordan and Zrnic (Science 2023) and, for the weight that the judge gets, Angelopoulos, Duchi and
Zrnic (PPI++, arXiv 2311.01453), by their package `ppi-python`.
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
        judged: The rate by the judge's verdicts alone.
        value: The rate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        labels: How many labels there are.
        to_halve: About how many more of them would halve the interval; None if more labels alone cannot.
        kappa: Cohen's kappa of judge and people, as in all of the replies; None where one of them always says the same.
    """

    judged: float
    value: float
    low: float
    high: float
    labels: int
    to_halve: int | None
    kappa: float | None


def powered_rate(judged: Bools, strata: Ints, labelled: Ints, people: Bools) -> PoweredRate | None:
    """The rate of which a judge's verdicts are a guess, and people's on a part of them the truth.

    Args:
        judged: The judge's verdicts, `[n]`.
        strata: Within which the labelled ones were drawn at random, `[n]`.
        labelled: Which of the n have labels, `[m]`, each once.
        people: The labels, `[m]`.

    Returns:
        The rate, its interval cut to 0 and 1; None as long as a stratum has no label.
    """
    from ppi_py import ppi_mean_ci, ppi_mean_pointestimate
    from sklearn.metrics import cohen_kappa_score

    sizes = {stratum: int((strata == stratum).sum()) for stratum in np.unique(strata).tolist()}
    of_labelled = strata[labelled]
    if len(labelled) == 0 or any(stratum not in of_labelled for stratum in sizes):
        return None
    said, guessed, weights = [people], [judged[labelled]], [np.ones(len(labelled))]
    where = [of_labelled]
    for stratum in sizes:
        guess = judged[strata == stratum]
        said.append(np.array([True, False]))
        guessed.append(guess[:1].repeat(2))
        weights.append(np.full(2, PSEUDO_LABELS))
        where.append(np.array([stratum, stratum]))
    y, f = np.concatenate(said).astype(float), np.concatenate(guessed).astype(float)
    w, s = np.concatenate(weights), np.concatenate(where)
    for stratum, size in sizes.items():
        own = s == stratum
        w[own] *= size / w[own].sum()
    w /= w.mean()
    everything = judged.astype(float)
    low, high = (float(end[0]) for end in ppi_mean_ci(y, f, everything, alpha=1 - LEVEL, w=w))
    value = float(np.squeeze(ppi_mean_pointestimate(y, f, everything, w=w)))
    at_labels, one_kind = (
        w[: len(labelled)],
        len(set(people.tolist())) == 1 or len(set(f[: len(labelled)])) == 1,
    )
    return PoweredRate(
        judged=float(judged.mean()),
        value=min(1.0, max(0.0, value)),
        low=max(0.0, low),
        high=min(1.0, high),
        labels=len(labelled),
        to_halve=_to_halve(high - low, float(everything.std()) / math.sqrt(len(everything)), len(labelled)),
        kappa=None
        if one_kind
        else float(cohen_kappa_score(people, judged[labelled], sample_weight=at_labels)),
    )


def _to_halve(width: float, of_judged: float, labels: int) -> int | None:
    """More labels that halve an interval: what the replies themselves are few for, labels cannot mend."""
    from scipy.stats import norm

    variance = (width / 2 / float(norm.ppf((1 + LEVEL) / 2))) ** 2
    of_labels = max(0.0, variance - of_judged**2)
    left = variance / 4 - of_judged**2
    return None if left <= 0 else math.ceil(labels * (of_labels / left - 1))
