"""The numbers of a run, as they stand in `results.json`, and how they come from the samples of all methods."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from discernment.errors import DataError
from discernment.evaluation.families import Families, FrontierDifference, frontier_differences
from discernment.evaluation.flips import FlipCount
from discernment.evaluation.groups import POOLED, RunGroups
from discernment.evaluation.headline import finding
from discernment.evaluation.metrics import (
    Comparison,
    EqualSafety,
    Ranked,
    Ranking,
    Score,
    compare,
    rank_and_compare,
    score,
)
from discernment.evaluation.robustness import AttackDrop
from discernment.evaluation.safety_levels import SafetyLevel
from discernment.evaluation.sample import Sample
from discernment.evaluation.second_judge import JudgeDifference
from discernment.frozen import Frozen
from discernment.prompts import Label
from discernment.statistics.paired_tests import holm
from discernment.statistics.safety_levels import SAFETY_LEVELS


class Ability(Frozen):
    """How a policy fares on given replies beside its base model; intervals are 95 % bootstrap ones over prompts.

    Ends of an interval are None with fewer than ten prompts (clusters of them), from which none is claimed.

    Attributes:
        policy: The policy's name.
        base: The base model's name.
        kl: KL(base || policy) in nats a token: mean over the tokens of a reply, then over prompts.
        kl_low: Lower end of its interval.
        kl_high: Upper end.
        perplexity: Perplexity of the policy: exp of the mean negative log-likelihood over all tokens.
        perplexity_low: Lower end of its interval.
        perplexity_high: Upper end.
        perplexity_base: Perplexity of the base model on the same replies.
        ratio: `perplexity` over `perplexity_base`; above 1, the policy is more surprised.
        ratio_low: Lower end of its paired interval.
        ratio_high: Upper end.
        prompts: Number of prompts with a reply.
        tokens: Number of reply tokens, the end of each turn included.
    """

    policy: str
    base: str
    kl: float
    kl_low: float | None
    kl_high: float | None
    perplexity: float
    perplexity_low: float | None
    perplexity_high: float | None
    perplexity_base: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    prompts: int
    tokens: int


class KernelSimilarity(Frozen):
    """How far a training step on a toxic prompt moves the logits of other prompts, compared with a step on their own.

    The mean of ||K(x', x)||_F / ||K(x', x')||_F over pairs of a toxic prompt x and another prompt x' of one label,
    pairs of one wording left out (Lu et al. 2026, section 3).

    Attributes:
        policy: The policy's name.
        label: The label of x'.
        mean: The mean; None if there is no scored pair.
        low: Lower end of its 95 % bootstrap interval over prompts; None with fewer than ten clusters of prompts.
        high: Upper end.
        pairs: Number of pairs.
    """

    policy: str
    label: Label
    mean: float | None
    low: float | None
    high: float | None
    pairs: int


class TaskScore(Frozen):
    """One metric of one policy on one task of lm-evaluation-harness.

    Attributes:
        policy: The policy's name.
        task: The task's name, or that of a group of tasks.
        metric: The metric, such as `acc` or `acc_norm`.
        filter: How answers were extracted before scoring; `none` for most tasks.
        value: The metric.
        standard_error: Its standard error over questions; None where the harness gives none.
        questions: Number of questions.
    """

    policy: str
    task: str
    metric: str
    filter: str
    value: float
    standard_error: float | None
    questions: int


class LeftOut(Frozen):
    """Something that was asked for and is not there.

    Attributes:
        method: The method.
        what: What it has not.
        hence: What it has not for that reason either.
        why: Why, in words.
        seeds: With which seeds, where there are several.
    """

    method: str
    what: str
    hence: str = ""
    why: str
    seeds: tuple[int, ...] = Field((), exclude_if=lambda seeds: not seeds)

    @property
    def words(self) -> str:
        """A sentence."""
        hence = f", and so {self.hence}" if self.hence else ""
        when = f" (seed {', '.join(map(str, self.seeds))})" if self.seeds else ""
        return f"{self.method} has no {self.what}{hence}: {self.why}{when}."


class Results(Frozen):
    """Everything that a run found.

    Attributes:
        schema_version: Version of this file's form.
        base_model: The base model's name.
        reference: The method that the others are compared with (`stl` where it is there).
        methods: The methods in the recipe's order.
        benchmarks: The benchmarks in the recipe's order.
        scores: The rates.
        rankings: The discernment AUROCs.
        comparisons: The paired comparisons with `reference`.
        equal_safety: The comparisons at equal safety with `reference`.
        safety_levels: The comparisons at fixed levels of safety, of each harmless benchmark and of all of them with all
            toxic prompts.
        frontiers: The comparisons of methods in several strengths with the reference's, along what their verdicts reach.
        attack_drops: What attacks take of each method's defense success; attacked prompts are in no other number.
        kernels: Kernel similarity of each method's model.
        abilities: How each method but the base model itself fares on given replies.
        tasks: What each method reaches in tasks of lm-evaluation-harness.
        flips: What changes in each method's replies and verdicts with the batches.
        judge_differences: How often a second judge sees each method's replies differently.
        left_out: What was asked for and is not there, and why.
        finding: The answer in two sentences, perhaps with a warning.
    """

    schema_version: Literal[1] = 1
    base_model: str
    reference: str
    methods: list[str]
    benchmarks: list[str]
    scores: list[Score]
    rankings: list[Ranking]
    comparisons: list[Comparison]
    equal_safety: list[EqualSafety]
    safety_levels: list[SafetyLevel] = Field([])
    frontiers: list[FrontierDifference] = Field([])
    attack_drops: list[AttackDrop] = Field([])
    kernels: list[KernelSimilarity] = Field([])
    abilities: list[Ability] = Field([])
    tasks: list[TaskScore] = Field([])
    flips: list[FlipCount] = Field([])
    judge_differences: list[JudgeDifference] = Field([])
    left_out: list[LeftOut] = Field([])
    finding: str


def summarize(
    samples: Mapping[str, Sequence[Sample]],
    *,
    base_model: str,
    reference: str,
    safety_levels: Sequence[float] = SAFETY_LEVELS,
    families: Families | None = None,
    seed: int = 0,
) -> Results:
    """Compute every number of a run.

    Rates are given for each benchmark and label. Rankings and comparisons at equal safety set the toxic prompts
    of a benchmark against its own harmless ones, and those of all benchmarks, pooled as `all`, against each other;
    paired comparisons too have a pooled row where several benchmarks have a label. At equal safety, the reference
    is also set against itself, so that its curve is at hand. At fixed levels of safety, all toxic prompts are set against
    the harmless ones of each benchmark and of all.

    Args:
        samples: The samples of each method, methods in the order in which they shall stand.
        base_model: The base model's name.
        reference: The method that the others are compared with; one of `samples`.
        safety_levels: The levels, each a share of the toxic prompts above 0 and at most 1; without any, there is no
            comparison at fixed levels.
        families: The methods that come in several strengths.
        seed: Fixes the resamples of every bootstrap.

    Raises:
        DataError: If `reference` has no samples, a method has two of one prompt, or a benchmark is called `all`.
    """
    if not samples.get(reference):
        raise DataError(
            f"The reference method {reference!r} has no samples to compare with; those with samples are: "
            f"{', '.join(method for method, found in samples.items() if found) or 'none'}."
        )
    groups = RunGroups(_in_order(samples, reference), reference)
    if POOLED in groups.benchmarks:
        raise DataError(
            f"A benchmark is called {POOLED!r}, which stands for all benchmarks together; give it another name."
        )
    ranked, comparisons = _ranked(groups, safety_levels, seed), _comparisons(groups, seed)
    return Results(
        base_model=base_model,
        reference=reference,
        methods=groups.methods,
        benchmarks=groups.benchmarks,
        scores=_scores(groups),
        rankings=ranked.rankings,
        comparisons=comparisons,
        equal_safety=ranked.equal_safety,
        safety_levels=ranked.levels,
        frontiers=frontier_differences(groups, families or {}, seed),
        left_out=_left_out(groups),
        finding=finding(groups, ranked.rankings, comparisons, ranked.equal_safety),
    )


def _in_order(samples: Mapping[str, Sequence[Sample]], reference: str) -> dict[str, Sequence[Sample]]:
    """The samples of each method in the order of the reference's, since resamples draw prompts by their places."""
    places = {s.key: n for n, s in enumerate(samples[reference])}
    for method, found in samples.items():
        (key, times), *_ = Counter(s.key for s in found).most_common(1) or [(("", ""), 0)]
        if times > 1:
            benchmark, prompt = key
            raise DataError(
                f"{method} has {times} samples of the prompt {prompt!r} of {benchmark!r}; leave one, or make the ids unique."
            )
    return {
        method: sorted(found, key=lambda s: places.get(s.key, len(places)))
        for method, found in samples.items()
    }


def _scores(groups: RunGroups) -> list[Score]:
    return [
        score(group)
        for method in groups.methods
        for benchmark in groups.benchmarks
        for label in Label
        if (group := groups.group(method, benchmark, label)).samples
    ]


def _left_out(groups: RunGroups) -> list[LeftOut]:
    """The rejection probabilities that are not there, and what hangs on them."""
    found = []
    for method, samples in groups.samples.items():
        reasons = [s.no_rejection for s in samples if s.no_rejection is not None]
        if reasons:
            why = max(sorted(set(reasons)), key=reasons.count)
            what, hence = f"rejection probability for {len(reasons)} of {len(samples)} prompts", ""
            if groups.no_rejection(method):
                what, hence = (
                    "rejection probability",
                    "no discernment AUROC and no comparison at equal safety",
                )
            found.append(LeftOut(method=method, what=what, hence=hence, why=why))
    return found


def _ranked(groups: RunGroups, levels: Sequence[float], seed: int) -> Ranked:
    ranked = Ranked([], [], [])
    for p in groups.pairings():
        toxic, harmless = (
            [groups.group(method, benchmark, label) for method in groups.methods]
            for benchmark, label in ((p.toxic, Label.TOXIC), (p.harmless, p.label))
        )
        widest = (p.toxic, p.harmless) == (groups.pool(Label.TOXIC), groups.pool(p.label))
        asked = levels if levels and widest else None
        found = rank_and_compare(toxic, harmless, groups.reference, levels=asked, seed=seed)
        ranked.rankings.extend(found.rankings)
        ranked.equal_safety.extend(found.equal_safety)
        ranked.levels.extend(found.levels)
    return ranked


def _comparisons(groups: RunGroups, seed: int) -> list[Comparison]:
    places = [
        (benchmark, label)
        for benchmark in (*groups.benchmarks, POOLED)
        for label, holders in groups.holders.items()
        if holders and benchmark in (*holders, groups.pool(label))
    ]
    rows = []
    for method in groups.others:
        sides = ([groups.group(m, *place) for m in (method, groups.reference)] for place in places)
        found = (compare(*both, seed=seed) for both in sides)
        rows += _corrected([row for row in found if row])
    return rows


def _corrected(rows: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values of one method over its benchmarks; pooled rows hold the same prompts and stay out."""
    p_holm = iter(holm([row.p_value for row in rows if row.benchmark != POOLED]))
    return [
        row if row.benchmark == POOLED else row.model_copy(update={"p_holm": next(p_holm)}) for row in rows
    ]
