"""Methods in several strengths over several seeds: the frontiers of a run's families, seed by seed on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from discernment.evaluation.families import Families, Pair, pairs_of
from discernment.evaluation.groups import (
    POOLED,
    Group,
    clusters_of_both,
    common_samples,
    is_scored,
    outcomes,
)
from discernment.evaluation.over_seeds import SamplesOfSeed, SeedFrontier, SeedPair, pools_of
from discernment.evaluation.sample import Sample
from discernment.prompts import HARMLESS, Label
from discernment.statistics.frontiers import Outcomes, common_range, frontier_area
from discernment.statistics.intervals import RESAMPLES, Clusters
from discernment.statistics.seeds import statistic_over_seeds


def frontiers_over_seeds(
    runs: Mapping[int, SamplesOfSeed], families: Families, reference: str, *, resamples: int = RESAMPLES
) -> list[SeedFrontier]:
    """Compare every family with the reference's over several seeds, where both reach with every seed.

    Args:
        runs: For each seed, the samples of each line on the same benchmarks.
        families: Those of the recipe.
        reference: The line that the others are compared with.
        resamples: Resamples of the bootstrap.

    Returns:
        A row a family and label, without those that reach no level of safety in common.
    """
    found = []
    for both in pairs_of(families, reference):
        for label in HARMLESS:
            row = _over_seeds(runs, both, label, resamples)
            found += [] if row is None else [row]
    return found


def _over_seeds(
    runs: Mapping[int, SamplesOfSeed], both: Pair, label: Label, resamples: int
) -> SeedFrontier | None:
    sides = [
        [run[line] for line in lines] for lines in (both.lines, both.lines_against) for run in runs.values()
    ]
    measured = _measured(sides, label)
    if measured is None:
        return None
    points, clusters = measured
    common = common_range(points)
    if common.low >= common.high:
        return None
    areas = [frontier_area(outcomes_of_side, common) for outcomes_of_side in points]
    values, difference = statistic_over_seeds(areas, clusters, resamples=resamples)
    every = next(iter(runs.values()))[both.method]
    where, toxic = pools_of(every, label)[-1], pools_of(every, Label.TOXIC)[-1]
    pair = SeedPair(runs, both.method, both.against, resamples)
    row = pair.row("frontier", toxic, where, label, values, difference)
    return SeedFrontier(**row.model_dump(), level_low=common.low, level_high=common.high)


def _measured(
    sides: Sequence[Sequence[Sequence[Sample]]], label: Label
) -> tuple[list[Outcomes], Clusters] | None:
    """The outcomes of each side's points on the prompts that all have a verdict for, and the clusters of these."""
    kinds = [
        common_samples([Group.of(samples, "", POOLED, kind) for side in sides for samples in side], is_scored)
        for kind in (Label.TOXIC, label)
    ]
    if not all(kind[0] for kind in kinds):
        return None
    toxic, harmless = map(outcomes, kinds)
    ends = [sum(len(side) for side in sides[: n + 1]) for n in range(len(sides))]
    places = [slice(end - len(side), end) for end, side in zip(ends, sides, strict=True)]
    return [(toxic[place], harmless[place]) for place in places], clusters_of_both(kinds[0][0], kinds[1][0])
