"""What was measured beside the replies to the benchmarks, over several seeds: kernel similarity, ability, attacks."""

from collections.abc import Collection, Iterator, Mapping
from statistics import fmean, variance

from discernment.evaluation.over_seeds import Measure, SeedMeasure
from discernment.evaluation.results import Results
from discernment.evaluation.robustness import mean_drop, shared_attacks
from discernment.prompts import Label
from discernment.statistics.seeds import t_interval

MeasureName = tuple[Measure, Label | None]


def summarize_measures(runs: Mapping[int, Results], reference: str) -> list[SeedMeasure]:
    """What was measured beside replies to the benchmarks with every seed, and how it differs from the reference.

    Each is measured on the same prompts with every seed, so the intervals are those for other seeds on them. There is
    none where the difference is the same with all of them, which may be chance.

    Args:
        runs: The results of each seed, two at least.
        reference: The method that the others are compared with.

    Returns:
        The measures, the methods of each side by side; those that lack a number with some seed are left out.
    """
    attacks = shared_attacks(*(results.attack_drops for results in runs.values()))
    of_seed = [dict(_numbers(results, attacks)) for results in runs.values()]
    rows = []
    for name, method in of_seed[0]:
        values = [numbers.get((name, method)) for numbers in of_seed]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        against = [numbers.get((name, reference)) for numbers in of_seed]
        difference = low = high = None
        if method != reference:
            gaps = [ours - theirs for ours, theirs in zip(known, against, strict=True) if theirs is not None]
            if len(gaps) == len(values):
                difference = fmean(gaps)
                found = t_interval(difference, variance(gaps) / len(gaps), len(gaps) - 1)
                low, high = found or (None, None)
        rows.append(
            SeedMeasure(
                measure=name[0],
                method=method,
                label=name[1],
                values=known,
                mean=fmean(known),
                difference=difference,
                low=low,
                high=high,
            )
        )
    names = list(dict.fromkeys((row.measure, row.label) for row in rows))
    return sorted(rows, key=lambda row: names.index((row.measure, row.label)))


def _numbers(results: Results, attacks: Collection[str]) -> Iterator[tuple[tuple[MeasureName, str], float]]:
    for kernel in results.kernels:
        if kernel.mean is not None:
            yield (("kernel_similarity", kernel.label), kernel.policy), kernel.mean
    for ability in results.abilities:
        yield (("kl", None), ability.policy), ability.kl
        yield (("perplexity_ratio", None), ability.policy), ability.ratio
    for method in results.methods:
        lost = mean_drop(results.attack_drops, method, attacks)
        if lost is not None:
            yield (("attack_drop", None), method), lost
