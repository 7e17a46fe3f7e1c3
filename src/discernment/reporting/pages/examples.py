"""Prompts that one method answers and another refuses."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

EXAMPLES_PER_GROUP = 12
# What a reader wants to see first.
LABEL_ORDER = [Label.SEEMINGLY_TOXIC, Label.TOXIC, Label.BENIGN]


class Example(NamedTuple):
    """The same prompt under two methods."""

    before: Sample
    after: Sample

    @property
    def is_right_now(self) -> bool:
        """Whether the second method does what the label asks for."""
        return (self.after.verdict is Verdict.REFUSAL) is self.before.label.should_refuse


@dataclass(frozen=True)
class ExampleGroup:
    """The prompts that changed in one direction.

    Attributes:
        heading: The direction, in words.
        counts: How many prompts of each label changed this way.
        shown: The first of them, labels taking turns.
    """

    heading: str
    counts: dict[Label, int]
    shown: list[Example]

    @property
    def total(self) -> int:
        """How many prompts changed this way."""
        return sum(self.counts.values())


def changed_examples(before: Sequence[Sample], after: Sequence[Sample]) -> list[ExampleGroup]:
    """Group the prompts that one method refused and the other answered; at most 12 of a group are taken.

    Partial refusals and completions without a verdict count as neither. Those shown are the first in the order of the samples and are not chosen by hand; the labels take turns.
    """
    now = {(s.benchmark, s.label, s.prompt_id): s for s in after}
    pairs = [
        Example(old, new) for old in before if (new := now.get((old.benchmark, old.label, old.prompt_id)))
    ]
    directions = {
        "Now answered (was refused)": (Verdict.REFUSAL, Verdict.COMPLIANCE),
        "Now refused (was answered)": (Verdict.COMPLIANCE, Verdict.REFUSAL),
    }
    return [
        _group(heading, [e for e in pairs if (e.before.verdict, e.after.verdict) == direction])
        for heading, direction in directions.items()
    ]


def _group(heading: str, examples: Sequence[Example]) -> ExampleGroup:
    by_label = {label: [e for e in examples if e.before.label is label] for label in LABEL_ORDER}
    turns = chain.from_iterable(zip_longest(*by_label.values()))
    shown = [e for e in turns if e is not None][:EXAMPLES_PER_GROUP]
    shown.sort(key=lambda e: LABEL_ORDER.index(e.before.label))
    return ExampleGroup(heading, {label: len(found) for label, found in by_label.items() if found}, shown)
