"""The numbers of a run with several seeds, as they stand in `seeds.json`, and how they come from those of each seed.

Every method is compared with the reference seed by seed, on the same prompts; the intervals are those of
`statistics.seeds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from discernment.evaluation.groups import (
    POOLED,
    Group,
    Measured,
    benchmarks_with,
    cluster_ids,
    common_samples,
    handled_rightly,
    is_measured,
    is_scored,
    outcomes,
)
from discernment.evaluation.metrics import comparable_share
from discernment.evaluation.results import LeftOut
from discernment.evaluation.safety_levels import levels_of, parts_of
from discernment.evaluation.sample import Sample
from discernment.frozen import Frozen
from discernment.prompts import Label
from discernment.statistics.auroc import weighted_auroc
from discernment.statistics.equal_safety import Scores
from discernment.statistics.intervals import (
    ANY_DIFFERENCE,
    FEWEST_CLUSTERS,
    RESAMPLES,
    Floats,
    WeightedStatistic,
)
from discernment.statistics.operating_curve import OperatingCurve
from discernment.statistics.safety_levels import SAFETY_LEVELS, clusters_of_parts, level_statistic
from discernment.statistics.seeds import (
    SeedDifference,
    seed_difference,
    statistic_over_seeds,
    statistics_over_seeds,
)

Quantity = Literal["rate", "equal_safety", "auroc", "safety_level", "strict_compliance", "frontier"]
Measure = Literal["kernel_similarity", "kl", "perplexity_ratio", "attack_drop"]
SamplesOfSeed = Mapping[str, Sequence[Sample]]
"""The samples of each method, of one seed."""


class SeedComparison(Frozen):
    """Two methods over several seeds, seed by seed on the same prompts.

    Attributes:
        quantity: `rate` (of rightly handled prompts, by verdicts), `equal_safety` (compliance where both refuse the
            share of toxic prompts that `against` refuses with the same seed, at most `metrics.HIGHEST_LEVEL`), `auroc` (discernment AUROC), `safety_level`
            (compliance where each refuses the share `level` of the toxic prompts), `strict_compliance` (its mean over
            all levels from `level` to 1) or `frontier` (its mean over the levels that two families of lines reach).
        method: The method.
        against: The method that it is compared with.
        benchmark: The prompts that count: harmless ones, and for a `rate` perhaps toxic ones; `all` for several sets.
        label: Their label.
        toxic: The toxic prompts that they are set against; None for a `rate`.
        level: The share of refused toxic prompts, for `safety_level` and `strict_compliance`; None for the others.
        values: Of `method`, seed by seed.
        values_against: Of `against`.
        difference: Mean of the first minus the second.
        seeds_low: Lower end of the 95 % t interval for other seeds on these prompts; -1 to 1 where all seeds agree.
        seeds_high: Upper end.
        low: Lower end of the 95 % interval for other seeds on other prompts.
        high: Upper end.
        n: Number of prompts that count.
    """

    quantity: Quantity
    method: str
    against: str
    benchmark: str
    label: Label
    toxic: str | None
    level: float | None = None
    values: list[float]
    values_against: list[float]
    difference: float
    seeds_low: float
    seeds_high: float
    low: float
    high: float
    n: int


class SeedFrontier(SeedComparison):
    """Two families of lines, compared where both reach with every seed.

    Attributes:
        level_low: The lowest share of toxic prompts refused that both reach.
        level_high: The highest.
    """

    level_low: float
    level_high: float


class SeedMeasure(Frozen):
    """What was measured of one method beside its replies to the benchmarks, over several seeds.

    Attributes:
        measure: `kernel_similarity` with a step on a toxic prompt; on given replies `kl`, nats a token from the
            base model, and `perplexity_ratio`, perplexity over the base model's; `attack_drop`, defense success lost,
            mean over the attacks that all methods have with every seed.
        method: The method.
        label: The label of the prompts that the step moves; None for the other measures.
        values: The measure, seed by seed.
        mean: Their mean.
        difference: Mean of the differences to the reference, seed by seed; None where it has no such number.
        low: Lower end of the 95 % t interval of the difference for other seeds on these prompts; None where all seeds
            agree, as a few do by chance.
        high: Upper end.
    """

    measure: Measure
    method: str
    label: Label | None
    values: list[float]
    mean: float
    difference: float | None
    low: float | None
    high: float | None


class SeedResults(Frozen):
    """Everything that a run with several seeds found.

    Attributes:
        schema_version: Version of this file's form.
        base_model: The base model's name.
        reference: The method that the others are compared with.
        seeds: The seeds, in the order of every list of values.
        methods: The methods in the recipe's order.
        benchmarks: The benchmarks in the recipe's order.
        comparisons: The comparisons with `reference`.
        safety_levels: The comparisons at fixed levels of safety.
        frontiers: The comparisons of methods in several strengths along what their verdicts reach.
        measures: What was measured of every method beside its replies to the benchmarks.
        left_out: What was asked for and is not there, and with which seeds.
    """

    schema_version: Literal[1] = 1
    base_model: str
    reference: str
    seeds: list[int]
    methods: list[str]
    benchmarks: list[str]
    comparisons: list[SeedComparison]
    safety_levels: list[SeedComparison] = Field([])
    frontiers: list[SeedFrontier] = Field([])
    measures: list[SeedMeasure] = Field([])
    left_out: list[LeftOut] = Field([])


def reference_values(rows: Sequence[SeedComparison]) -> list[float] | None:
    """The reference's values in comparisons of several methods with it on the same benchmark.

    Returns:
        The values, seed by seed; None where they differ by method, since the methods lack a number on other prompts.
    """
    first, *others = (row.values_against for row in rows)
    return first if all(values == first for values in others) else None


def summarize_seeds(
    runs: Mapping[int, SamplesOfSeed],
    *,
    base_model: str,
    reference: str,
    safety_levels: Sequence[float] = SAFETY_LEVELS,
    resamples: int = RESAMPLES,
) -> SeedResults:
    """Compare every method with `reference` over several seeds.

    Rates are compared on each benchmark and label. Compliance at equal safety and the AUROC set the harmless prompts
    of each benchmark, and those of all pooled, against all toxic prompts pooled, and so do fixed levels of safety; the
    AUROC also against those of each benchmark. Left out are comparisons without a prompt that every seed has a number for, and compliance at equal
    safety where, with some seed, the reference refuses next to no toxic prompt.

    Args:
        runs: For each seed, the samples of each method on the same benchmarks.
        base_model: The base model's name.
        reference: The method that the others are compared with.
        safety_levels: As in `summarize`.
        resamples: Resamples of every bootstrap.

    Raises:
        ValueError: If there are fewer than two seeds.
    """
    if len(runs) < 2:
        raise ValueError(f"Numbers over seeds need at least two seeds, not {len(runs)}.")
    first = next(iter(runs.values()))
    places = {label: pools_of(first[reference], label) for label in Label}
    rows: list[SeedComparison] = []
    at_levels: list[SeedComparison] = []
    for method in [method for method in first if method != reference]:
        pair = SeedPair(runs, method, reference, resamples)
        for label, benchmarks in places.items():
            if safety_levels and label is not Label.TOXIC and benchmarks and places[Label.TOXIC]:
                at_levels += pair.at_levels(safety_levels, places[Label.TOXIC][-1], benchmarks[-1], label)
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
        safety_levels=at_levels,
    )


def pools_of(samples: Sequence[Sample], label: Label) -> list[str]:
    """The benchmarks with prompts of a label; if there are several, all of them pooled stand last."""
    names = benchmarks_with(samples, label)
    return [*names, POOLED] if len(names) > 1 else names


class _Scores(NamedTuple):
    """Prompts, and their rejection probabilities under one method and then the other, seed by seed."""

    prompts: Measured
    scores: list[Scores]


class SeedPair(NamedTuple):
    """A method and the one that it is compared with, over all seeds."""

    runs: Mapping[int, SamplesOfSeed]
    method: str
    against: str
    resamples: int

    def groups(self, benchmark: str, label: Label) -> list[Group]:
        """Prompts as `method` answered them, seed by seed, and then as `against` did."""
        return [
            Group.of(run[method], method, benchmark, label)
            for method in (self.method, self.against)
            for run in self.runs.values()
        ]

    def rates(self, benchmark: str, label: Label) -> list[SeedComparison]:
        """The share of rightly handled prompts, by verdicts."""
        groups = self.groups(benchmark, label)
        ours, theirs = groups[: len(self.runs)], groups[len(self.runs) :]
        found = compare_over_seeds(list(zip(ours, theirs, strict=True)))
        if found is None:
            return []
        rates = [fmean(map(handled_rightly, samples)) for samples in common_samples(groups, is_scored)]
        return [self.row("rate", None, benchmark, label, rates, found)]

    def scores(self, toxic: str, benchmark: str, label: Label) -> _Scores | None:
        """The rejection probabilities that all have; None if there are none."""
        high = common_samples(self.groups(toxic, Label.TOXIC), is_measured)
        low = common_samples(self.groups(benchmark, label), is_measured)
        found = [Measured.of(*both) for both in zip(high, low, strict=True)]
        measured = [one for one in found if one is not None]
        return _Scores(measured[0], [one.scores for one in measured]) if measured else None

    def at_levels(
        self, shares: Sequence[float], toxic: str, benchmark: str, label: Label
    ) -> list[SeedComparison]:
        """Compliance at fixed levels of safety, on each benchmark and on all of them."""
        found = self.scores(toxic, benchmark, label)
        if found is None:
            return []
        levels = levels_of(found.prompts, shares)
        statistics = [level_statistic(OperatingCurve(*both), levels) for both in found.scores]
        clusters = found.prompts.clusters
        places = [(part, asked) for part in parts_of(found.prompts, benchmark) for asked in levels.measures]
        fewest = [n for n in clusters_of_parts(levels, clusters[1]) for _ in levels.measures]
        by_place = statistics_over_seeds(statistics, clusters, fewest=fewest, resamples=self.resamples)
        rows = []
        for ((name, size), (measure, level)), (values, difference) in zip(places, by_place, strict=True):
            quantity: Quantity = "safety_level" if measure == "compliance" else "strict_compliance"
            row = self.row(quantity, toxic, name, label, values, replace(difference, n=size))
            rows.append(row.model_copy(update={"level": level}))
        return rows

    def ranked(self, quantity: Quantity, toxic: str, benchmark: str, label: Label) -> list[SeedComparison]:
        """The AUROC, or compliance at equal safety."""
        common = self.scores(toxic, benchmark, label)
        if common is None:
            return []
        scores = common.scores
        if quantity == "auroc":
            statistics = [weighted_auroc(*both) for both in scores]
        else:
            of_seeds = map(comparable_share, self.groups(toxic, Label.TOXIC)[len(self.runs) :])
            shares = [share for share in of_seeds if share is not None]
            if len(shares) < len(self.runs):
                return []
            statistics = [
                _compliance_at(share, OperatingCurve(*both))
                for share, both in zip([*shares, *shares], scores, strict=True)
            ]
        clusters = common.prompts.clusters
        values, found = statistic_over_seeds(statistics, clusters, resamples=self.resamples)
        return [self.row(quantity, toxic, benchmark, label, values, found)]

    def row(
        self,
        quantity: Quantity,
        toxic: str | None,
        benchmark: str,
        label: Label,
        values: Sequence[float],
        found: SeedDifference,
    ) -> SeedComparison:
        """What the values of both, seed by seed and first the method's, say of their difference."""
        ours, theirs = list(values[: len(self.runs)]), list(values[len(self.runs) :])
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
            seeds_low=found.over_seeds.low,
            seeds_high=found.over_seeds.high,
            low=found.over_both.low,
            high=found.over_both.high,
            n=found.n,
        )


def _compliance_at(share: float, curve: OperatingCurve) -> WeightedStatistic:
    def compliance(toxic_weights: Floats, harmless_weights: Floats) -> Floats:
        return curve.at(share, toxic_weights, harmless_weights)[1]

    return compliance


def compare_over_seeds(runs: Sequence[tuple[Group, Group]]) -> SeedDifference | None:
    """Two methods over several seeds, on the prompts that all have a verdict for.

    Args:
        runs: For each seed, the prompts as the method and as the one that it is compared with answered them.

    Returns:
        The difference; None if there are fewer than two seeds or fewer than two clusters of such prompts. With fewer than
        `FEWEST_CLUSTERS` nothing is claimed for other prompts: the interval over both is the whole range.
    """
    if len(runs) < 2:
        return None
    sides = common_samples([group for pair in runs for group in pair], is_scored)
    clusters = cluster_ids(sides[0])
    count = len(np.unique(clusters))
    if count < 2:
        return None
    right = outcomes(sides)
    found = seed_difference(right[0::2] - right[1::2], clusters=clusters)
    return found if count >= FEWEST_CLUSTERS else replace(found, over_both=ANY_DIFFERENCE)
