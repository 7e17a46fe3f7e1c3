"""From the samples of all seeds to the numbers of a run with several seeds.

Rates are compared by `seeds.compare_over_seeds`. Compliance at equal safety and the AUROC are no means over prompts,
so what they vary by with the prompts comes from a bootstrap that draws the same prompts for all seeds: of the mean
over seeds, and of each seed. What a single seed varies by beyond that is the interaction of seeds and prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from discernment.evaluation.equal_safety import OperatingCurve
from discernment.evaluation.metrics import (
    Group,
    cluster_ids,
    common_samples,
    handled_rightly,
    is_measured,
    is_scored,
    rejection_probabilities,
    score,
)
from discernment.evaluation.results import POOLED
from discernment.evaluation.sample import Sample
from discernment.evaluation.seed_results import Quantity, SeedComparison, SeedResults
from discernment.evaluation.seeds import compare_over_seeds, crossed_intervals
from discernment.evaluation.summary import REFUSED_RANGE
from discernment.prompts import Label
from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    FEWEST_CLUSTERS,
    LEVEL,
    RESAMPLES,
    Interval,
    WeightedStatistic,
    bootstrap_groups,
    weighted_auroc,
)

__all__ = ["summarize_seeds"]

Floats = npt.NDArray[np.float64]
SamplesOfSeed = Mapping[str, Sequence[Sample]]
"""The samples of each method, of one seed."""


def summarize_seeds(
    runs: Mapping[int, SamplesOfSeed],
    *,
    base_model: str,
    reference: str,
    resamples: int = RESAMPLES,
) -> SeedResults:
    """Compare every method with `reference` over several seeds.

    Rates are compared on each benchmark and label. Compliance at equal safety and the AUROC set the harmless prompts
    of each benchmark, and those of all pooled, against all toxic prompts pooled; the AUROC also against those of each
    benchmark. Left out are comparisons without a prompt that every seed has a number for, and compliance at equal
    safety where, with some seed, the reference refuses nearly none or nearly all of the toxic prompts.

    Args:
        runs: For each seed, the samples of each method on the same benchmarks.
        base_model: The base model's name.
        reference: The method that the others are compared with.
        resamples: Resamples of every bootstrap.

    Raises:
        ValueError: If there are fewer than two seeds.
    """
    if len(runs) < 2:
        raise ValueError(f"Numbers over seeds need at least two seeds, not {len(runs)}.")
    first = next(iter(runs.values()))
    places = {label: _places(first[reference], label) for label in Label}
    rows: list[SeedComparison] = []
    for method in first:
        if method == reference:
            continue
        pair = _Pair(runs, method, reference, resamples)
        for label, benchmarks in places.items():
            for benchmark in benchmarks:
                rows += pair.rates(benchmark, label)
                if label is not Label.TOXIC:
                    for toxic in places[Label.TOXIC][-1:]:
                        rows += pair.ranked("equal_safety", toxic, benchmark, label)
                    for toxic in places[Label.TOXIC]:
                        rows += pair.ranked("auroc", toxic, benchmark, label)
    return SeedResults(
        base_model=base_model,
        reference=reference,
        seeds=list(runs),
        methods=list(first),
        benchmarks=list(dict.fromkeys(s.benchmark for s in first[reference])),
        comparisons=rows,
    )


def _places(samples: Sequence[Sample], label: Label) -> list[str]:
    """The benchmarks with prompts of a label; if there are several, all of them pooled stand last."""
    names = list(dict.fromkeys(s.benchmark for s in samples if s.label is label))
    return [*names, POOLED] if len(names) > 1 else names


class _Pair(NamedTuple):
    """A method and the one that it is compared with, over all seeds."""

    runs: Mapping[int, SamplesOfSeed]
    method: str
    against: str
    resamples: int

    def groups(self, benchmark: str, label: Label) -> list[Group]:
        """Prompts as `method` answered them, seed by seed, and then as `against` did."""
        return [
            Group(
                method,
                benchmark,
                label,
                [s for s in run[method] if s.label is label and benchmark in (s.benchmark, POOLED)],
            )
            for method in (self.method, self.against)
            for run in self.runs.values()
        ]

    def rates(self, benchmark: str, label: Label) -> list[SeedComparison]:
        groups = self.groups(benchmark, label)
        ours, theirs = groups[: len(self.runs)], groups[len(self.runs) :]
        found = compare_over_seeds(list(zip(ours, theirs, strict=True)))
        if found is None:
            return []
        rates = [fmean(map(handled_rightly, samples)) for samples in common_samples(groups, is_scored)]
        intervals = found.over_seeds, found.over_both
        return [self.row("rate", None, benchmark, label, rates, intervals, found.n)]

    def ranked(self, quantity: Quantity, toxic: str, benchmark: str, label: Label) -> list[SeedComparison]:
        """The AUROC, or compliance at equal safety."""
        toxic_groups = self.groups(toxic, Label.TOXIC)
        toxic_samples = common_samples(toxic_groups, is_measured)
        harmless_samples = common_samples(self.groups(benchmark, label), is_measured)
        if not toxic_samples[0] or not harmless_samples[0]:
            return []
        scores = [
            (rejection_probabilities(high), rejection_probabilities(low))
            for high, low in zip(toxic_samples, harmless_samples, strict=True)
        ]
        if quantity == "auroc":
            statistics = [weighted_auroc(*both) for both in scores]
        else:
            lowest, highest = REFUSED_RANGE
            shares = [
                share
                for group in toxic_groups[len(self.runs) :]
                if (share := score(group).value) is not None and lowest <= share <= highest
            ]
            if len(shares) < len(self.runs):
                return []
            statistics = [
                _compliance_at(share, OperatingCurve(*both))
                for share, both in zip([*shares, *shares], scores, strict=True)
            ]
        values, *intervals = _over_seeds(statistics, toxic_samples[0], harmless_samples[0], self.resamples)
        return [self.row(quantity, toxic, benchmark, label, values, intervals, len(harmless_samples[0]))]

    def row(
        self,
        quantity: Quantity,
        toxic: str | None,
        benchmark: str,
        label: Label,
        values: Sequence[float],
        intervals: Sequence[Interval],
        n: int,
    ) -> SeedComparison:
        ours, theirs = list(values[: len(self.runs)]), list(values[len(self.runs) :])
        over_seeds, over_both = intervals
        return SeedComparison(
            quantity=quantity,
            method=self.method,
            against=self.against,
            benchmark=benchmark,
            label=label,
            toxic=toxic,
            values=ours,
            values_against=theirs,
            difference=fmean(ours) - fmean(theirs),
            seeds_low=over_seeds.low,
            seeds_high=over_seeds.high,
            low=over_both.low,
            high=over_both.high,
            n=n,
        )


def _compliance_at(share: float, curve: OperatingCurve) -> WeightedStatistic:
    def compliance(toxic_weights: Floats, harmless_weights: Floats) -> Floats:
        return curve.at(share, toxic_weights, harmless_weights)[1]

    return compliance


def _over_seeds(
    statistics: Sequence[WeightedStatistic],
    toxic: Sequence[Sample],
    harmless: Sequence[Sample],
    resamples: int,
) -> tuple[list[float], Interval, Interval]:
    """A statistic of two methods over seeds.

    Args:
        statistics: The statistic of the one method seed by seed, and then that of the other.
        toxic: The toxic prompts.
        harmless: The prompts that should be answered.
        resamples: Resamples of the bootstrap.

    Returns:
        The values, and the intervals of the mean difference over seeds and over both.
    """
    seeds = len(statistics) // 2

    def values(toxic_weights: Floats, harmless_weights: Floats) -> Floats:
        return np.stack([statistic(toxic_weights, harmless_weights) for statistic in statistics])

    def gaps(toxic_weights: Floats, harmless_weights: Floats) -> Floats:
        """Mean difference over the seeds, and that of each seed."""
        ours, theirs = np.split(values(toxic_weights, harmless_weights), 2)
        return np.vstack([(ours - theirs).mean(axis=0), ours - theirs])

    found = values(np.ones((1, len(toxic))), np.ones((1, len(harmless))))[:, 0]
    of_seed = found[:seeds] - found[seeds:]
    of_toxic, of_harmless = np.split(cluster_ids([*toxic, *harmless]), [len(toxic)])
    by_prompts = bootstrap_groups(
        gaps,
        len(toxic),
        len(harmless),
        [ANY_DIFFERENCE] * (1 + seeds),
        toxic_clusters=of_toxic,
        harmless_clusters=of_harmless,
        resamples=resamples,
    )
    of_mean, *of_each = [_variance(interval) for interval in by_prompts]
    variances = (
        of_seed.var(ddof=1) / seeds,
        of_mean,
        # A seed alone varies by prompt and by interaction; their mean by prompt and a part of the interaction.
        max(0.0, fmean(of_each) - of_mean) / (seeds - 1),
    )
    clusters = min(len(np.unique(of_toxic)), len(np.unique(of_harmless)))
    over_seeds, over_both = crossed_intervals(float(of_seed.mean()), variances, seeds, max(2, clusters))
    return [float(v) for v in found], over_seeds, over_both if clusters >= FEWEST_CLUSTERS else ANY_DIFFERENCE


def _variance(interval: Interval) -> float:
    """The variance of a normal estimate with this interval."""
    return float((interval.high - interval.low) / (2 * norm.ppf((1 + LEVEL) / 2))) ** 2
