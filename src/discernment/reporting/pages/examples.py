"""Prompts that one method answers and another refuses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import NamedTuple

from discernment.evaluation.headline import headline_method
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample
from discernment.evaluation.second_judge import Disagreement, SecondVerdict, disagreements
from discernment.judges.verdict import Verdict
from discernment.prompts import HARMLESS, Label

EXAMPLES_PER_GROUP = 12
FIRST = 3
DISAGREEMENTS = 10
ANSWERED = (Verdict.REFUSAL, Verdict.COMPLIANCE)
REFUSED = (Verdict.COMPLIANCE, Verdict.REFUSAL)
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
    pairs = _pairs(before, after)
    directions = {"Now answered (was refused)": ANSWERED, "Now refused (was answered)": REFUSED}
    return [_group(heading, _turned(pairs, direction)) for heading, direction in directions.items()]


@dataclass(frozen=True)
class Freed:
    """Harmless prompts that the reference refuses and the method that a run is about answers.

    Attributes:
        label: Their label: seemingly toxic prompts where there are any, else benign ones.
        before: The reference.
        after: The method.
        answered: How many they are.
        refused: How many went the other way.
        shown: The first of them, in the order of the samples; none is chosen.
    """

    label: Label
    before: str
    after: str
    answered: int
    refused: int
    shown: list[Example]


def freed(results: Results, samples: Mapping[str, Sequence[Sample]]) -> Freed | None:
    """What a run changed for harmless prompts, shown by its first examples; None where there are none.

    Args:
        results: The results of the run.
        samples: Its samples, by method.
    """
    before, after = headline_pair(results)
    pairs = _pairs(samples.get(before, []), samples.get(after or "", []))
    for label in HARMLESS:
        answered, refused = (
            [e for e in _turned(pairs, direction) if e.before.label is label]
            for direction in (ANSWERED, REFUSED)
        )
        if answered:
            shown = list(islice(answered, FIRST))
            return Freed(label, before, after or "", len(answered), len(refused), shown)
    return None


def headline_pair(results: Results) -> tuple[str, str | None]:
    """The reference, and the method that is compared with it first of all."""
    return results.reference, headline_method([m for m in results.methods if m != results.reference])


def _pairs(before: Sequence[Sample], after: Sequence[Sample]) -> list[Example]:
    now = {(s.benchmark, s.label, s.prompt_id): s for s in after}
    return [
        Example(old, new) for old in before if (new := now.get((old.benchmark, old.label, old.prompt_id)))
    ]


def _turned(pairs: Sequence[Example], direction: tuple[Verdict, Verdict]) -> list[Example]:
    return [e for e in pairs if (e.before.verdict, e.after.verdict) == direction]


def _group(heading: str, examples: Sequence[Example]) -> ExampleGroup:
    by_label = {label: [e for e in examples if e.before.label is label] for label in LABEL_ORDER}
    turns = chain.from_iterable(zip_longest(*by_label.values()))
    shown = [e for e in turns if e is not None][:EXAMPLES_PER_GROUP]
    shown.sort(key=lambda e: LABEL_ORDER.index(e.before.label))
    return ExampleGroup(heading, {label: len(found) for label, found in by_label.items() if found}, shown)


def seen_differently(
    samples: Mapping[str, Sequence[Sample]], second: Mapping[str, Sequence[SecondVerdict]]
) -> list[tuple[str, int, list[Disagreement]]]:
    """For each method how many replies two judges see differently, and the first ten of them; none is chosen."""
    found = {m: disagreements(samples[m], verdicts) for m, verdicts in second.items() if m in samples}
    return [(method, len(every), every[:DISAGREEMENTS]) for method, every in found.items() if every]
