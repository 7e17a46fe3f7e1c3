"""The numbers of a run with several seeds, as they stand in `seeds.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from discernment.frozen import Frozen
from discernment.prompts import Label

__all__ = ["Measure", "Quantity", "SeedComparison", "SeedMeasure", "SeedResults", "reference_values"]

Quantity = Literal["rate", "equal_safety", "auroc"]

Measure = Literal["kernel_similarity", "kl", "perplexity_ratio"]


class SeedComparison(Frozen):
    """Two methods over several seeds, seed by seed on the same prompts.

    Attributes:
        quantity: `rate` (of rightly handled prompts, by verdicts), `equal_safety` (compliance where both refuse the
            share of toxic prompts that `against` refuses with the same seed) or `auroc` (discernment AUROC).
        method: The method.
        against: The method that it is compared with.
        benchmark: The prompts that count: harmless ones, and for a `rate` perhaps toxic ones; `all` for several sets.
        label: Their label.
        toxic: The toxic prompts that they are set against; None for a `rate`.
        values: Of `method`, seed by seed.
        values_against: Of `against`.
        difference: Mean of the first minus the second.
        seeds_low: Lower end of the 95 % t interval for other seeds on these prompts.
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
    values: list[float]
    values_against: list[float]
    difference: float
    seeds_low: float
    seeds_high: float
    low: float
    high: float
    n: int


class SeedMeasure(Frozen):
    """What was measured of the model of one method beside its replies, over several seeds.

    Attributes:
        measure: `kernel_similarity` with a step on a toxic prompt, or on given replies `kl`, nats a token from the
            base model, and `perplexity_ratio`, perplexity over the base model's.
        method: The method.
        label: The label of the prompts that the step moves; None for the other measures.
        values: The measure, seed by seed.
        mean: Their mean.
        difference: Mean of the differences to the reference, seed by seed; None where it has no such number.
        low: Lower end of the 95 % t interval of the difference for other seeds on these prompts.
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
        measures: What was measured of every method's model beside its replies.
    """

    schema_version: Literal[1] = 1
    base_model: str
    reference: str
    seeds: list[int]
    methods: list[str]
    benchmarks: list[str]
    comparisons: list[SeedComparison]
    measures: list[SeedMeasure] = Field([])


def reference_values(rows: Sequence[SeedComparison]) -> list[float] | None:
    """The reference's values in comparisons of several methods with it on the same benchmark.

    Returns:
        The values, seed by seed; None where they differ by method, since the methods lack a number on other prompts.
    """
    first, *others = (row.values_against for row in rows)
    return first if all(values == first for values in others) else None
