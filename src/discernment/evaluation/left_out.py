"""Methods on sources that their training did not see: what each group of sources gave when it was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from discernment.errors import DataError
from discernment.evaluation.groups import POOLED
from discernment.evaluation.results import Results
from discernment.frozen import Frozen
from discernment.prompts import Label
from discernment.statistics.seeds import t_interval

Quantity = Literal["auroc", "compliance", "strict_compliance"]


class Number(NamedTuple):
    """What is looked at.

    Attributes:
        quantity: The discernment AUROC, compliance where a share of the toxic prompts is refused, or its mean over
            all shares from one on.
        level: That share; None for the AUROC.
    """

    quantity: Quantity
    level: float | None = None


class LeftOutScore(Frozen):
    """A number of one method on sources that were left out, with one seed.

    Attributes:
        method: The method.
        left_out: The group of sources, which this training did not see.
        seed: The seed.
        quantity: See `Number`.
        level: See `Number`.
        value: The number, over all seemingly toxic prompts of the group's benchmarks against all toxic ones.
    """

    method: str
    left_out: str
    seed: int
    quantity: Quantity
    level: float | None
    value: float


class LeftOutSummary(Frozen):
    """A number of one method over all groups that were left out.

    Attributes:
        method: The method.
        quantity: See `Number`.
        level: See `Number`.
        mean: Mean over groups and seeds.
        by_group: Mean over the seeds of each group.
        lowest: Of all groups and seeds.
        difference: `mean` minus the reference's; None where the reference lacks this number in some run.
        low: Lower end of its 95 % t interval over seeds, from one difference a seed, the mean over the groups; None for
            a single seed, and where all agree, as a few do by chance.
        high: Upper end.
    """

    method: str
    quantity: Quantity
    level: float | None
    mean: float
    by_group: dict[str, float]
    lowest: float
    difference: float | None
    low: float | None
    high: float | None

    @property
    def worst(self) -> str:
        """The group with the lowest mean."""
        return min(self.by_group, key=self.by_group.__getitem__)


class LeftOutResults(Frozen):
    """What a recipe with `leave_out` found (`left_out.json`).

    Attributes:
        schema_version: Version of this file's form.
        base_model: The base model's name.
        reference: The method that the others are compared with.
        methods: In the recipe's order.
        groups: The sets of each group.
        seeds: The seeds.
        scores: Every number.
        summaries: What they say together, methods in order; without the numbers that a method lacks in some run.
    """

    schema_version: Literal[1] = 1
    base_model: str
    reference: str
    methods: list[str]
    groups: dict[str, list[str]]
    seeds: list[int]
    scores: list[LeftOutScore]
    summaries: list[LeftOutSummary]

    @property
    def incomplete(self) -> list[str]:
        """The methods that lack a number in some run, which others have in all."""
        numbers = {(row.quantity, row.level) for row in self.summaries}
        has = {(row.method, row.quantity, row.level) for row in self.summaries}
        return [m for m in self.methods if any((m, *number) not in has for number in numbers)]


def summarize_left_out(
    results: Mapping[tuple[str, int], Results], groups: Mapping[str, list[str]]
) -> LeftOutResults:
    """Put the runs that left something out together.

    Args:
        results: By group and seed, a run that left this group out and was measured on it.
        groups: The sets of each group, in order.

    Raises:
        DataError: If a run has no seemingly toxic prompts to rank against toxic ones.
    """
    first = next(iter(results.values()))
    scores = [
        LeftOutScore(method=method, left_out=group, seed=seed, **number._asdict(), value=value)
        for (group, seed), found in results.items()
        for (method, number), value in _numbers(found, group).items()
    ]
    table = {(s.method, Number(s.quantity, s.level), s.left_out, s.seed): s.value for s in scores}
    seeds = list(dict.fromkeys(seed for _, seed in results))
    wanted = Counter((method, number) for method, number, _, _ in table)
    summaries = [
        _summary(method, number, table, list(groups), seeds, first.reference)
        for method, number in wanted
        if wanted[method, number] == len(results)
    ]
    return LeftOutResults(
        base_model=first.base_model,
        reference=first.reference,
        methods=first.methods,
        groups=dict(groups),
        seeds=seeds,
        scores=scores,
        summaries=sorted(summaries, key=lambda row: first.methods.index(row.method)),
    )


def _numbers(results: Results, group: str) -> dict[tuple[str, Number], float]:
    """Every number of every method, over the widest sets of prompts."""
    found: dict[tuple[str, Number], float] = {}
    rankings = [row for row in results.rankings if row.harmless_label is Label.SEEMINGLY_TOXIC]
    for row in sorted(rankings, key=lambda row: (row.toxic == POOLED) + (row.harmless == POOLED)):
        found[row.method, Number("auroc")] = row.value
    levels = [row for row in results.safety_levels if row.harmless_label is Label.SEEMINGLY_TOXIC]
    for level in sorted(levels, key=lambda row: row.harmless == POOLED):
        if level.measure != "at_reference":
            number = Number(level.measure, level.level)
            found[level.method, number] = level.value
            found[level.against, number] = level.value_against
    if not found:
        raise DataError(
            f"Without {group} there are no seemingly toxic and toxic prompts to measure on; name benchmarks of both labels."
        )
    return found


def _summary(
    method: str,
    number: Number,
    table: Mapping[tuple[str, Number, str, int], float],
    groups: list[str],
    seeds: list[int],
    reference: str,
) -> LeftOutSummary:
    own = {(g, s): table[method, number, g, s] for g in groups for s in seeds}
    against = {(g, s): table.get((reference, number, g, s)) for g, s in own}
    known = {place: value for place, value in against.items() if value is not None}
    gains = [fmean(own[g, s] - known[g, s] for g in groups) for s in seeds] if len(known) == len(own) else []
    interval = None
    if len(gains) > 1:
        interval = t_interval(fmean(gains), stdev(gains) ** 2 / len(seeds), len(seeds) - 1)
    low, high = interval or (None, None)
    return LeftOutSummary(
        method=method,
        quantity=number.quantity,
        level=number.level,
        mean=fmean(own.values()),
        by_group={g: fmean(own[g, s] for s in seeds) for g in groups},
        lowest=min(own.values()),
        difference=fmean(gains) if gains else None,
        low=low,
        high=high,
    )
