"""Compliance at equal safety along the checkpoints of an alignment, by verdicts alone.

Each checkpoint is a point (share of toxic prompts refused, share of harmless prompts answered) of the method's curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from discernment.evaluation.groups import Group, clusters_of_both, common_samples, is_scored, outcomes
from discernment.statistics.frontiers import FrontierComparison, compare_frontiers
from discernment.statistics.intervals import RESAMPLES


@dataclass(frozen=True)
class Checkpoint:
    """What a method answered at one point of its alignment.

    Attributes:
        toxic: The toxic prompts.
        harmless: The prompts that should be answered.
    """

    toxic: Group
    harmless: Group


def compare_checkpoints(
    method: Sequence[Checkpoint],
    against: Sequence[Checkpoint],
    toxic_refused: float | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> FrontierComparison | None:
    """Compare two methods at equal safety along their checkpoints.

    Matched prompts stay together; how the curves and intervals come about says `statistics.frontiers`.

    Args:
        method: The checkpoints of the method, in any order.
        against: The checkpoints of the one that it is compared with.
        toxic_refused: The common share of refused toxic prompts; without it, the middle of the common range.
        seed: Fixes the resamples.
        resamples: How many.

    Returns:
        The comparison over the prompts that have a verdict at every checkpoint; None if there are no such prompts of
        either kind, or if the two methods reached no common range of safety that holds `toxic_refused`.
    """
    if not method or not against:
        return None
    toxic, harmless = (
        common_samples(groups, is_scored)
        for groups in ([c.toxic for c in (*method, *against)], [c.harmless for c in (*method, *against)])
    )
    if not toxic[0] or not harmless[0]:
        return None
    right, k = (outcomes(toxic), outcomes(harmless)), len(method)
    return compare_frontiers(
        (right[0][:k], right[1][:k]),
        (right[0][k:], right[1][k:]),
        toxic_refused,
        clusters=clusters_of_both(toxic[0], harmless[0]),
        seed=seed,
        resamples=resamples,
    )
