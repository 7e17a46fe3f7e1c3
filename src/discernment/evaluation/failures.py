"""Which prompts still fail, in which categories, and what changed between two methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discernment.evaluation.groups import handled_rightly, is_scored
from discernment.evaluation.sample import Sample
from discernment.prompts import Label

NO_CATEGORY = "no category"


@dataclass(frozen=True)
class Outcome:
    """What every method made of one prompt.

    Attributes:
        samples: The sample of each method that has the prompt, methods in their order; not empty.
    """

    samples: Mapping[str, Sample]

    @property
    def sample(self) -> Sample:
        """One of the samples, for what they have in common: prompt, label, category, benchmark."""
        return next(iter(self.samples.values()))

    @property
    def place(self) -> tuple[str, Label, str]:
        """Benchmark, label and category."""
        return self.sample.benchmark, self.sample.label, self.sample.category or NO_CATEGORY

    @property
    def failed(self) -> list[str]:
        """The methods with a verdict that handled the prompt wrongly (in most replies), a partial refusal included."""
        return [m for m, s in self.samples.items() if is_scored(s) and handled_rightly(s) < 0.5]

    @property
    def fails_everywhere(self) -> bool:
        """Whether every method failed; one without a verdict did not."""
        return len(self.failed) == len(self.samples)


@dataclass(frozen=True)
class CategoryFailures:
    """The prompts of one category of a benchmark and label.

    Attributes:
        benchmark: The benchmark.
        label: The label.
        category: The category, or `no category`.
        prompts: Number of prompts.
        scored: Number of prompts with a verdict, by method.
        failed: Number of those handled wrongly, by method.
        everywhere: Number of prompts on which every method failed.
        failing: The prompts on which some method failed, those on which most failed first.
    """

    benchmark: str
    label: Label
    category: str
    prompts: int
    scored: Mapping[str, int]
    failed: Mapping[str, int]
    everywhere: int
    failing: Sequence[Outcome]

    def share(self, method: str) -> float | None:
        """The share of scored prompts on which `method` failed; None if none was scored."""
        return self.failed[method] / self.scored[method] if self.scored[method] else None


@dataclass(frozen=True)
class Change:
    """What is different under `method` than under `against`, on prompts with verdicts from both.

    Attributes:
        method: The method.
        against: The method that it is compared with.
        mended: Prompts that only `method` handled rightly.
        broken: Prompts that only `against` handled rightly.
    """

    method: str
    against: str
    mended: Sequence[Outcome]
    broken: Sequence[Outcome]

    def by_category(self) -> dict[tuple[str, Label, str], tuple[int, int]]:
        """How many prompts were mended and broken in each place (benchmark, label, category)."""
        places = dict.fromkeys(o.place for o in (*self.mended, *self.broken))
        return {
            place: (sum(o.place == place for o in self.mended), sum(o.place == place for o in self.broken))
            for place in places
        }


def outcomes(samples: Mapping[str, Sequence[Sample]]) -> list[Outcome]:
    """The samples of all methods prompt by prompt, in the order in which the prompts first occur."""
    found: dict[tuple[str, str], dict[str, Sample]] = {}
    for method, of_method in samples.items():
        for sample in of_method:
            found.setdefault(sample.key, {})[method] = sample
    return [Outcome(by_method) for by_method in found.values()]


def category_failures(found: Sequence[Outcome], methods: Sequence[str]) -> list[CategoryFailures]:
    """Failures by benchmark, label and category, in the order in which these first occur."""
    groups: dict[tuple[str, Label, str], list[Outcome]] = {}
    for outcome in found:
        groups.setdefault(outcome.place, []).append(outcome)
    return [
        CategoryFailures(
            *place,
            prompts=len(group),
            scored={m: sum(m in o.samples and is_scored(o.samples[m]) for o in group) for m in methods},
            failed={m: sum(m in o.failed for o in group) for m in methods},
            everywhere=sum(o.fails_everywhere for o in group),
            failing=sorted((o for o in group if o.failed), key=lambda o: -len(o.failed)),
        )
        for place, group in groups.items()
    ]


def changes(found: Sequence[Outcome], methods: Sequence[str], reference: str) -> list[Change]:
    """What each other method changed against `reference`."""
    rows = []
    for method in methods:
        if method == reference:
            continue
        both = [
            o for o in found if all(m in o.samples and is_scored(o.samples[m]) for m in (method, reference))
        ]
        rows.append(
            Change(
                method,
                reference,
                mended=[o for o in both if reference in o.failed and method not in o.failed],
                broken=[o for o in both if method in o.failed and reference not in o.failed],
            )
        )
    return rows
