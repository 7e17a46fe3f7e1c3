"""The field table: one row a method, one column a number, to see many methods side by side and sort them by any column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from discernment.cost import MEASURED_IN
from discernment.evaluation.groups import POOLED
from discernment.evaluation.metrics import Score
from discernment.evaluation.over_seeds import Measure, SeedComparison, SeedResults
from discernment.evaluation.results import Results
from discernment.evaluation.robustness import mean_drop, shared_attacks
from discernment.prompts import Label
from discernment.reporting import text
from discernment.reporting.naming import benchmark_in_words, label_in_words
from discernment.reporting.run_files import Manifest, Stage
from discernment.reporting.tables.cost import total
from discernment.reporting.tables.measures import level_in_words

FEWEST_METHODS = 5
"""With fewer, the other tables are seen at one glance."""
FORMS = {
    "percent": text.percent,
    "points": text.points,
    "decimal": text.decimal,
    "duration": text.duration,
    "bytes": text.bytes_size,
    "count": text.count,
}

BESIDE: dict[Measure, tuple[str, str]] = {
    "kl": ("KL to base, nats", "decimal"),
    "perplexity_ratio": ("Perplexity / base", "decimal"),
    "attack_drop": ("Lost to attacks, points", "points"),
}
"""Columns of what is measured beside the replies to the benchmarks: their words and forms."""
COSTS = {
    "Evaluation, seconds a token / reference": "decimal",
    "Making it": "duration",
    "Peak memory": "bytes",
    "Tokens of making it": "count",
}
"""Columns of what methods cost, and their forms."""


@dataclass
class FieldColumn:
    """One number of all methods.

    Attributes:
        words: What it is.
        form: How it is written, a key of `FORMS`.
        more_is_better: Whether it is; None where neither is.
        values: Of each method that has one.
        differences: Ends of the paired interval of the difference to the reference, where there is one.
    """

    words: str
    form: str
    more_is_better: bool | None = True
    values: dict[str, float] = field(default_factory=dict)
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)

    def written(self, method: str) -> str:
        """The number of a method, in the column's form."""
        return FORMS[self.form](self.values.get(method))

    @property
    def best(self) -> set[str]:
        """The method with the best number, or two that share it; none where more do."""
        if self.more_is_better is None or len(self.values) < 2:
            return set()
        wanted = (max if self.more_is_better else min)(self.values.values())
        found = {method for method, value in self.values.items() if value == wanted}
        return found if len(found) <= min(2, len(self.values) - 1) else set()

    def against_reference(self, method: str) -> str:
        """`better` or `worse` where the interval of the difference does not hold 0; else nothing."""
        low, high = self.differences.get(method, (0.0, 0.0))
        if self.more_is_better is None or low <= 0 <= high:
            return ""
        return "better" if (low > 0) == self.more_is_better else "worse"

    def places(self, methods: list[str]) -> dict[str, int]:
        """At which place each method stands when sorted by this column, the best first and those without a number last."""
        sign = 1 if self.more_is_better is False else -1
        order = sorted(
            methods, key=lambda m: (m not in self.values, sign * self.values.get(m, 0), methods.index(m))
        )
        return {method: place for place, method in enumerate(order)}


class _Columns:
    """Columns by what they are, in the order in which they are first asked for."""

    def __init__(self) -> None:
        self.found: dict[str, FieldColumn] = {}

    def put(
        self,
        words: str,
        form: str,
        method: str,
        value: float | None,
        *,
        more_is_better: bool | None = True,
        difference: tuple[float, float] | None = None,
    ) -> None:
        """Add the number of a method, if it is known."""
        if value is None:
            return
        column = self.found.setdefault(words, FieldColumn(words, form, more_is_better))
        column.values[method] = value
        if difference is not None:
            column.differences[method] = difference


def field_table(results: Results, manifest: Manifest) -> list[FieldColumn]:
    """The columns of a run: what was not measured of any method has none; none at all with few methods."""
    if len(results.methods) < FEWEST_METHODS:
        return []
    columns = _Columns()
    _put_levels(columns, results)
    _put_rates(columns, results)
    for ability in results.abilities:
        columns.put(*BESIDE["kl"], ability.policy, ability.kl, more_is_better=False)
        columns.put(*BESIDE["perplexity_ratio"], ability.policy, ability.ratio, more_is_better=False)
    attacks = shared_attacks(results.attack_drops)
    for method in results.methods:
        lost = mean_drop(results.attack_drops, method, attacks)
        columns.put(*BESIDE["attack_drop"], method, lost, more_is_better=False)
    _put_costs(columns, results.methods, results.reference, [manifest])
    return list(columns.found.values())


def _put_levels(columns: _Columns, results: Results) -> None:
    at_reference = [row for row in results.safety_levels if row.measure == "at_reference"]
    others = [row for row in results.safety_levels if row.measure != "at_reference"]
    several = {row.harmless_label for row in results.safety_levels if row.harmless == POOLED}
    for row in [*at_reference, *others]:
        # Fixed levels for all prompts of a label only, or the table would be too wide.
        if row.measure != "at_reference" and row.harmless_label in several and row.harmless != POOLED:
            continue
        where = f"{benchmark_in_words(row.harmless)}, {label_in_words[row.harmless_label]}"
        columns.put(
            f"{where}: answered, {level_in_words(row)}, %",
            "percent",
            row.method,
            row.value,
            difference=(row.difference_low, row.difference_high),
        )


def _put_rates(columns: _Columns, results: Results) -> None:
    places = {label: widest(results, label) for label in Label}
    gaps = {(c.method, c.benchmark, c.label): (c.low, c.high) for c in results.comparisons}
    of_auroc = {
        (e.method, e.toxic, e.harmless, e.harmless_label): (e.auroc_difference_low, e.auroc_difference_high)
        for e in results.equal_safety
    }
    for row in results.rankings:
        if (row.toxic, row.harmless) == (places[Label.TOXIC], places[row.harmless_label]):
            low, high = of_auroc.get((row.method, row.toxic, row.harmless, row.harmless_label), (None, None))
            columns.put(
                f"AUROC, {label_in_words[row.harmless_label]}",
                "decimal",
                row.method,
                row.value,
                difference=None if low is None or high is None else (low, high),
            )
    for label in Label:
        for method in results.methods:
            columns.put(
                f"{label_in_words[label].capitalize()} {'refused' if label.should_refuse else 'answered'}, %",
                "percent",
                method,
                pooled_rate(results, method, label),
                difference=gaps.get((method, places[label], label)),
            )


def widest(results: Results, label: Label) -> str:
    """The name under which all prompts of a label stand."""
    names = list(dict.fromkeys(s.benchmark for s in results.scores if s.label is label))
    return names[0] if len(names) == 1 else POOLED


def pooled_rate(results: Results, method: str, label: Label) -> float | None:
    """Share of all prompts of a label that a method handled rightly, by verdict; None without a verdict."""
    right, scored = counted(s for s in results.scores if (s.method, s.label) == (method, label))
    return right / scored if scored else None


def counted(scores: Iterable[Score]) -> tuple[float, int]:
    """How many prompts were handled rightly, in parts of one where several replies are drawn, and of how many."""
    known = [(s.value, s.scored) for s in scores if s.value is not None]
    scored = sum(n for _, n in known)
    return min(sum(value * n for value, n in known), scored), scored


def _put_costs(
    columns: _Columns, methods: Sequence[str], reference: str, manifests: Sequence[Manifest]
) -> None:
    """What methods cost, as means over runs; a cost that one of the runs does not know is left out."""
    runs = [_costs(manifest, methods, reference) for manifest in manifests]
    for method in methods:
        for words, form in COSTS.items():
            values = [costs[method, words] for costs in runs]
            known = [value for value in values if value is not None]
            mean = fmean(known) if known and len(known) == len(values) else None
            columns.put(words, form, method, mean, more_is_better=False)


def _costs(manifest: Manifest, methods: Sequence[str], reference: str) -> dict[tuple[str, str], float | None]:
    of_method = {method: dict(_stages(manifest, method)) for method in methods}
    paces = {method: _pace(stages) for method, stages in of_method.items()}
    against = paces.get(reference)
    costs: dict[tuple[str, str], float | None] = {}
    for method, stages in of_method.items():
        made = total(stage for stage in stages.values() if stage.name not in MEASURED_IN)
        pace = paces[method]
        slowdown = pace / against if pace and against else None
        values = (slowdown, made.seconds, made.peak_memory_bytes, made.tokens)
        costs |= {(method, words): value for words, value in zip(COSTS, values, strict=True)}
    return costs


def _stages(manifest: Manifest, method: str) -> Iterator[tuple[str, Stage]]:
    for stage_id in manifest.methods[method].stages if method in manifest.methods else ():
        if stage_id in manifest.stages:
            yield stage_id, manifest.stages[stage_id]


def _pace(stages: Mapping[str, Stage]) -> float | None:
    """Seconds a token of prompts and replies that a method's evaluation took."""
    found = next((s for s in stages.values() if s.name == "evaluate"), None)
    return found.seconds / found.tokens if found and found.seconds and found.tokens else None


def field_over_seeds(results: SeedResults, manifests: Sequence[Manifest] = ()) -> list[FieldColumn]:
    """The same of several seeds, as means over them.

    Args:
        results: What the seeds found.
        manifests: Those of the seeds' runs, which know what the methods cost; without them those columns are missing.
    """
    if len(results.methods) < FEWEST_METHODS:
        return []
    columns = _Columns()
    rows = [*results.comparisons, *results.safety_levels]
    widest_toxic = {row.toxic for row in rows if row.toxic is not None}
    toxic = POOLED if POOLED in widest_toxic else next(iter(widest_toxic), None)
    for quantity in ("equal_safety", "safety_level", "strict_compliance", "auroc", "rate"):
        found = [row for row in rows if row.quantity == quantity and row.toxic in (toxic, None)]
        pooled = {row.label for row in found if row.benchmark == POOLED}
        for row in found:
            if quantity == "equal_safety" or row.label not in pooled or row.benchmark == POOLED:
                words, form = _seed_words(row, results.reference)
                columns.put(words, form, row.method, fmean(row.values), difference=(row.low, row.high))
                columns.put(words, form, results.reference, fmean(row.values_against))
    for measured in results.measures:
        if measured.measure in BESIDE:
            words, form = BESIDE[measured.measure]
            ends = None if measured.low is None or measured.high is None else (measured.low, measured.high)
            columns.put(words, form, measured.method, measured.mean, more_is_better=False, difference=ends)
    _put_costs(columns, results.methods, results.reference, manifests)
    return list(columns.found.values())


def _seed_words(row: SeedComparison, reference: str) -> tuple[str, str]:
    label = label_in_words[row.label]
    where = f"{benchmark_in_words(row.benchmark)}, {label}"
    if row.quantity == "auroc":
        return f"AUROC, {label}", "decimal"
    if row.quantity == "rate":
        return f"{label.capitalize()} {'refused' if row.label.should_refuse else 'answered'}, %", "percent"
    level = f"safety of {reference}" if row.level is None else level_in_words(row)
    return f"{where}: answered, {level}, %", "percent"
