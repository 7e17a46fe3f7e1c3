"""Means over pairs of different prompts, with bootstrap intervals over prompts.

A resample draws clusters of prompts, and the pairs follow; intervals are 95 % percentile intervals. Where pairs
differ by more than what their prompts explain, they are somewhat too wide (Owen 2007, "The pigeonhole bootstrap").
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from discernment.errors import DataError
from discernment.frozen import FiniteFrozen
from discernment.prompts import Label
from discernment.statistics.intervals import FEWEST_CLUSTERS, RESAMPLES, Floats, cluster_numbers, times_drawn

Rows = npt.NDArray[np.intp]

PERCENTILES = (2.5, 97.5)


class PairMean(FiniteFrozen):
    """A mean over pairs of different prompts, with its 95 % bootstrap interval over prompts.

    Attributes:
        mean: The mean; None if there is no scored pair.
        low: Lower end of the interval; None with fewer than ten clusters of prompts on a side.
        high: Upper end of the interval.
        pairs: Number of ordered pairs (row, column).
    """

    mean: float | None
    low: float | None
    high: float | None
    pairs: int


class PairSample:
    """All pairs of prompts, and resamples of the prompts.

    Args:
        values: One value a pair, `[n, n]`; a prompt with NaN on the diagonal is unscored.
        labels: The label of each prompt.
        clusters: Which cluster each prompt belongs to, `[n]`; without it, each is its own. Clusters are drawn whole.
        seed: Fixes the resamples.

    Attributes:
        values: The same, with NaN where a pair enters no mean: with itself, or with an unscored prompt.
        drawn: How often each prompt is drawn, `[resamples, n]`.

    Raises:
        DataError: If there is no prompt, or the shapes do not fit.
    """

    def __init__(
        self,
        values: npt.ArrayLike,
        labels: Sequence[Label],
        clusters: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> None:
        n = len(labels)
        self.values = square(values, n).copy()
        self._labels = np.array(labels)
        self._scored = np.isfinite(self.values.diagonal())
        self.values[~self._scored] = self.values[:, ~self._scored] = np.nan
        np.fill_diagonal(self.values, np.nan)
        if clusters is not None and np.shape(clusters) != (n,):
            raise DataError(
                f"Cluster ids of the shape {np.shape(clusters)} do not fit {n} prompts; give one a prompt."
            )
        self._clusters = cluster_numbers(clusters, n)
        self.drawn = self._draw(np.random.default_rng(seed))

    def _draw(self, rng: np.random.Generator) -> Floats:
        """Draw clusters with replacement among those that hold the same labels, so that no group falls empty."""
        holds = np.zeros((self._clusters.max() + 1, len(Label)), dtype=bool)
        for n, label in enumerate(Label):
            holds[self._clusters[self.rows(label)], n] = True
        kinds = np.unique(holds, axis=0, return_inverse=True)[1]
        strata = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        drawn = np.concatenate(
            [stratum[rng.integers(len(stratum), size=(RESAMPLES, len(stratum)))] for stratum in strata],
            axis=1,
        )
        return times_drawn(drawn, len(holds))[:, self._clusters]

    def rows(self, label: Label) -> Rows:
        """The scored prompts of a label."""
        return np.flatnonzero(self._scored & (self._labels == label))

    def enough(self, *groups: Rows) -> bool:
        """Whether each group of prompts has enough clusters for an interval."""
        return all(len(np.unique(self._clusters[rows])) >= FEWEST_CLUSTERS for rows in groups)

    def mean(self, row: Label, column: Label) -> PairMean:
        """The mean over the pairs of two groups."""
        rows, columns = self.rows(row), self.rows(column)
        resampled = self.resampled(row, column) if self.enough(rows, columns) else None
        return pair_mean(self.values[np.ix_(rows, columns)], resampled)

    def resampled(self, row: Label, column: Label) -> Floats:
        """The mean in each resample, `[resamples]`; a prompt is not paired with its own copy."""
        rows, columns = self.rows(row), self.rows(column)
        values = self.values[np.ix_(rows, columns)]
        counted = np.isfinite(values)
        row_draws, column_draws = self.drawn[:, rows], self.drawn[:, columns]

        def total(block: Floats) -> Floats:
            return np.asarray(np.einsum("rj,rj->r", row_draws @ block, column_draws))

        with np.errstate(invalid="ignore"):
            return total(np.where(counted, values, 0.0)) / total(counted.astype(np.float64))


def pair_mean(values: Floats, resampled: Floats | None) -> PairMean:
    """The mean of what is finite among `values`, with the interval of `resampled`."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return PairMean(mean=None, low=None, high=None, pairs=0)
    low, high = interval(resampled)
    return PairMean(mean=float(finite.mean()), low=low, high=high, pairs=finite.size)


def interval(resampled: Floats | None) -> tuple[float | None, float | None]:
    """The 95 % percentile interval; a resample without any pair (NaN) says nothing."""
    if resampled is None:
        return None, None
    low, high = np.nanpercentile(resampled, PERCENTILES)
    return float(low), float(high)


def square(values: npt.ArrayLike, n: int) -> Floats:
    """The values of all pairs as an array.

    Raises:
        DataError: If there is no prompt, or not one row and one column for each.
    """
    values = np.asarray(values, dtype=np.float64)
    if n == 0 or values.shape != (n, n):
        raise DataError(
            f"Values of the shape {values.shape} do not fit the pairs of {n} prompts; give one row and one column "
            "for each of at least one prompt."
        )
    return values
