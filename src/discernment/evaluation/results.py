"""The numbers of a run, as they stand in `results.json`: everything that a table or a figure shows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from discernment.frozen import Frozen
from discernment.prompts import Label

__all__ = [
    "POOLED",
    "Ability",
    "AttackDrop",
    "Comparison",
    "EqualSafety",
    "FlipCount",
    "KernelSimilarity",
    "Ranking",
    "Results",
    "Score",
    "TaskScore",
]

POOLED = "all"
"""The name under which all benchmarks stand together."""

Metric = Literal["compliance_rate", "defense_success_rate"]


class Score(Frozen):
    """A rate of one method on the prompts of one label in one benchmark, with its 95 % Wilson interval.

    Attributes:
        method: The method.
        benchmark: The benchmark.
        label: The label of the prompts.
        metric: `defense_success_rate` for toxic prompts, `compliance_rate` for the others.
        value: The rate over the scored prompts; None if none could be scored.
        low: Lower end of the interval.
        high: Upper end of the interval.
        scored: Number of prompts with a verdict.
        unscored: Number of prompts without one.
        partial: Number of partial refusals among the scored.
    """

    method: str
    benchmark: str
    label: Label
    metric: Metric
    value: float | None
    low: float | None
    high: float | None
    scored: int
    unscored: int
    partial: int


class Ranking(Frozen):
    """Discernment AUROC of the rejection probability, with its 95 % bootstrap interval over prompts.

    Attributes:
        method: The method.
        toxic: The benchmark of the toxic prompts.
        harmless: The benchmark of the prompts that should be answered.
        harmless_label: Their label.
        value: Probability that a random toxic prompt has the higher rejection probability (ties count half).
        low: Lower end of the interval.
        high: Upper end of the interval.
        n_toxic: Number of toxic prompts.
        n_harmless: Number of the others.
    """

    method: str
    toxic: str
    harmless: str
    harmless_label: Label
    value: float
    low: float
    high: float
    n_toxic: int
    n_harmless: int


class Comparison(Frozen):
    """Two methods on the same prompts.

    Attributes:
        method: The method.
        against: The method that it is compared with.
        benchmark: The benchmark.
        label: The label of the prompts.
        metric: The rate that is compared.
        difference: Rate of `method` minus rate of `against`, over the prompts that both have a verdict for.
        low: Lower end of the 95 % paired bootstrap interval.
        high: Upper end.
        only_method: Prompts that only `method` handled rightly.
        only_against: Prompts that only `against` handled rightly.
        p_value: Exact McNemar test.
        p_holm: The same after Holm's correction over every benchmark and label on which `method` is compared with
            `against`; None for a pooled row, which is one test of its own.
        n: Number of prompts compared.
    """

    method: str
    against: str
    benchmark: str
    label: Label
    metric: Metric
    difference: float
    low: float
    high: float
    only_method: int
    only_against: int
    p_value: float
    p_holm: float | None = None
    n: int


class EqualSafety(Frozen):
    """Compliance where both methods refuse the same share of toxic prompts.

    A threshold on the rejection probability is set for each method so that it refuses the share `toxic_refused`
    of the toxic prompts; the compliance is the share of harmless prompts below it (linear between thresholds).

    Attributes:
        method: The method.
        against: The method that it is compared with.
        toxic: The benchmark of the toxic prompts.
        harmless: The benchmark of the prompts that should be answered.
        harmless_label: Their label.
        toxic_refused: The common share of refused toxic prompts: what `against` refuses by the judge's verdicts.
        threshold: The threshold of `method`.
        compliance: Its compliance there.
        low: Lower end of its 95 % bootstrap interval over prompts.
        high: Upper end.
        compliance_against: Compliance of `against` at its own threshold.
        difference: `compliance` minus `compliance_against`.
        difference_low: Lower end of its 95 % paired bootstrap interval.
        difference_high: Upper end.
        auroc_difference: Discernment AUROC of `method` minus that of `against`; no threshold is involved.
        auroc_difference_low: Lower end of its 95 % paired bootstrap interval.
        auroc_difference_high: Upper end.
        curve: Points (share of toxic prompts refused, compliance) of `method` over all thresholds.
    """

    method: str
    against: str
    toxic: str
    harmless: str
    harmless_label: Label
    toxic_refused: float
    threshold: float
    compliance: float
    low: float
    high: float
    compliance_against: float
    difference: float
    difference_low: float
    difference_high: float
    auroc_difference: float | None = None
    auroc_difference_low: float | None = None
    auroc_difference_high: float | None = None
    curve: list[tuple[float, float]]


class AttackDrop(Frozen):
    """Defense success of one method with and without an attack, on the same toxic prompts.

    Attributes:
        method: The method.
        attack: The attack.
        benchmark: The benchmark of the prompts; `all` where there are several.
        clean: Share refused as they are.
        attacked: Share refused under the attack.
        drop: The first minus the second; above 0, the attack works.
        low: Lower end of its 95 % paired bootstrap interval over prompts.
        high: Upper end.
        p_value: Exact McNemar test.
        n: Number of prompts with a verdict on both.
        unscored: Number of attacked prompts without one.
    """

    method: str
    attack: str
    benchmark: str
    clean: float
    attacked: float
    drop: float
    low: float
    high: float
    p_value: float
    n: int
    unscored: int


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


class FlipCount(Frozen):
    """What changed when one method was evaluated again, in batches of another size and in another order.

    Attributes:
        method: The method.
        batch_size: Batch size of the first evaluation.
        other_batch_size: Batch size of the second.
        prompts: Number of prompts.
        changed: Number of prompts with another reply.
        flipped: Number of prompts with another verdict.
        rejection_change: Largest change of a rejection probability; None if it was not measured.
    """

    method: str
    batch_size: int
    other_batch_size: int
    prompts: int
    changed: int
    flipped: int
    rejection_change: float | None


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
        attack_drops: What attacks take of each method's defense success; attacked prompts are in no other number.
        kernels: Kernel similarity of each method's model.
        abilities: How each method but the base model itself fares on given replies.
        tasks: What each method reaches in tasks of lm-evaluation-harness.
        flips: What changes in each method's replies and verdicts with the batches.
        finding: The answer in two sentences.
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
    attack_drops: list[AttackDrop] = Field([])
    kernels: list[KernelSimilarity] = Field([])
    abilities: list[Ability] = Field([])
    tasks: list[TaskScore] = Field([])
    flips: list[FlipCount] = Field([])
    finding: str
