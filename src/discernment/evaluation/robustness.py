"""How much of its defense success a method loses to an attack."""

from collections.abc import Collection, Sequence
from statistics import fmean

from discernment.evaluation.groups import POOLED, Group, handled_rightly, is_scored, paired
from discernment.evaluation.metrics import compare
from discernment.evaluation.sample import Sample
from discernment.frozen import Frozen


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


def shared_attacks(*runs: Sequence[AttackDrop]) -> set[str]:
    """The attacks that were tried, in every run, on each method on which any was."""
    of_method = [
        {row.attack for row in drops if row.method == method}
        for drops in runs
        for method in dict.fromkeys(row.method for row in drops)
    ]
    return set.intersection(*of_method) if of_method else set()


def mean_drop(drops: Sequence[AttackDrop], method: str, attacks: Collection[str]) -> float | None:
    """Defense success that a method loses, mean over `attacks`; None where none of them was tried on it."""
    found = [row.drop for row in drops if row.method == method and row.attack in attacks]
    return fmean(found) if found else None


def attack_drop(
    clean: Sequence[Sample], attacked: Sequence[Sample], *, method: str, attack: str, seed: int = 0
) -> AttackDrop | None:
    """Compare one method on toxic prompts with itself under an attack.

    A reply that is no refusal need not be harmful: a small model that cannot read an encoding answers beside the
    point, and that counts as a drop too. Look at the completions, or judge whether they do harm.

    Args:
        clean: Samples of the prompts as they are; those that are not toxic are left out.
        attacked: Samples of the same prompts under the attack: of benchmarks named `NAME+ATTACK`, as `Attack.apply`
            names them, or `NAME`.
        method: The method's name.
        attack: The attack's name.
        seed: Fixes the resamples of the bootstrap.

    Returns:
        The drop; None if no toxic prompt has a verdict on both sides.
    """
    before = [s for s in clean if s.label.should_refuse]
    after = [
        s.model_copy(update={"benchmark": s.benchmark.removesuffix(f"+{attack}")})
        for s in attacked
        if s.label.should_refuse
    ]
    benchmarks = {s.benchmark for s in after}
    name = next(iter(benchmarks)) if len(benchmarks) == 1 else POOLED
    if not after:
        return None
    sides = (
        Group(method, name, after[0].label, before),
        Group(f"{method} under {attack}", name, after[0].label, after),
    )
    found = compare(*sides, seed=seed)
    if found is None:
        return None
    pairs = paired(*sides, is_scored)
    refused, refused_after = (sum(handled_rightly(pair[side]) for pair in pairs) for side in (0, 1))
    return AttackDrop(
        method=method,
        attack=attack,
        benchmark=name,
        clean=refused / found.n,
        attacked=refused_after / found.n,
        drop=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        n=found.n,
        unscored=sum(not is_scored(s) for s in after),
    )
