"""One model of several that stage 1 made with other seeds: the mean of their weights, or the best by validation.

Seeds differ widely in how far stage 1 takes the labels apart. All begin at the same weights and end near each other, so the
mean of their weights is a model too, and often one that holds better on other data (model soups, Wortsman et al. 2022,
arXiv 2203.05482).
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from discernment.cost import StageCost
from discernment.errors import TrainingError
from discernment.files import read_json_lines
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.training.adapters import check_leaving, leave_policy
from discernment.training.contrastive import Stopping


def average(start: PolicySpec, others: Sequence[PolicySpec], out: Path) -> StageCost:
    """Leave a model in `out` whose weights are the mean of several models'.

    Args:
        start: One of the models.
        others: The others, of the same base model; two models are in memory at a time.
        out: The stage's directory; gets `model/` and `policy.json`.

    Raises:
        DiskError: If the disk has no room for the model.
    """
    policy = Policy.load(start, training=True)
    check_leaving(policy.model, None, out)
    mean = dict(policy.model.named_parameters())
    with torch.no_grad():
        for count, other in enumerate(others, 2):
            for name, weights in Policy.load(other, training=True).model.named_parameters():
                # What all have in common stays as it is, byte for byte.
                mean[name].lerp_(weights, 1 / count)
    leave_policy(start, policy.model, policy.chat, None, out)
    return StageCost(steps=0, tokens=0, notes={"models": 1 + len(others)})


def choose(start: PolicySpec, others: Sequence[PolicySpec], by: Stopping, out: Path) -> StageCost:
    """Leave the policy in `out` that did best on the validation prompts of stage 1.

    Args:
        start: What stage 1 left.
        others: What it left with other seeds.
        by: How it was stopped. The number by which it kept a step is compared at that step; where it kept the last one,
            the similarity across the labels at the last look.
        out: The stage's directory; gets `policy.json`, which names the chosen model.

    Raises:
        TrainingError: If stage 1 did not look at validation prompts.
    """
    policies = [start, *others]
    measure = "probe_auroc" if by == "probe_auroc" else "cross_similarity"
    sign = 1 if by == "probe_auroc" else -1
    found = []
    for policy in policies:
        rows = [row for _, row in read_json_lines(policy.folder / "history.jsonl")]
        looks = [row[measure] for row in rows if measure in row and row["step"] > 0]
        if not looks:
            raise TrainingError(
                f"{policy.folder / 'history.jsonl'} has no look at validation prompts, by which the best restart would be "
                "known; refine with some."
            )
        found.append(looks[-1] if by == "none" else max(looks, key=lambda look: sign * look))
    best = max(range(len(found)), key=lambda n: sign * found[n])
    policies[best].write(out)
    return StageCost(steps=0, tokens=0, notes={"chosen": best + 1, measure: found})
