"""Rejection probabilities by label, and whether they tell the labels apart."""

import numpy as np

from discernment.errors import NotFiniteError
from discernment.frozen import FiniteFrozen
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.progress import Progress, counting
from discernment.prompts import HARMLESS, Label, PromptSet
from discernment.prompts.clusters import prompt_clusters
from discernment.statistics.pairs import PairMean, PairSample

NOT_FINITE = "the model's values for it are not finite"


class GroupRejection(FiniteFrozen):
    """Rejection probabilities of the prompts of one label.

    Attributes:
        label: The label.
        prompts: How many were scored.
        mean: Their mean.
        lower_quartile: A quarter of them lies below.
        median: Half of them lie below.
        upper_quartile: Three quarters of them lie below.
    """

    label: Label
    prompts: int
    mean: float
    lower_quartile: float
    median: float
    upper_quartile: float


class DiscernmentAuroc(PairMean):
    """Discernment AUROC: how often a toxic prompt has a higher rejection probability than one of another label.

    Attributes:
        harmless: The other label.
    """

    harmless: Label


def rejections(
    policy: Policy, prompts: PromptSet, batch_size: int, tell: Progress
) -> tuple[dict[str, float], dict[str, str]]:
    """Rejection probabilities by prompt id, and why a prompt has none.

    Raises:
        DiscernmentError: If they cannot be measured for another reason than values that are not finite.
    """
    count = counting(tell, "rejection probabilities", len(prompts))
    try:
        found = rejection_probability(policy, prompts.asked, batch_size=batch_size, progress=count)
        return {p.id: value for p, value in zip(prompts, found, strict=True)}, {}
    except NotFiniteError:  # one prompt without finite values ends the call for all
        values: dict[str, float] = {}
        unscored: dict[str, str] = {}
        for number, prompt in enumerate(prompts, start=1):
            tell("rejection probabilities, one by one", number, len(prompts))
            try:
                values[prompt.id] = rejection_probability(policy, [prompt.asked])[0]
            except NotFiniteError:
                unscored[prompt.id] = NOT_FINITE
        return values, unscored


def group_rejections(prompts: PromptSet, rejections: dict[str, float]) -> list[GroupRejection]:
    """What each label's rejection probabilities are like, from those of the scored prompts by id."""
    groups = []
    for label in Label:
        values = [rejections[p.id] for p in prompts if p.label is label and p.id in rejections]
        if values:
            lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
            groups.append(
                GroupRejection(
                    label=label,
                    prompts=len(values),
                    mean=float(np.mean(values)),
                    lower_quartile=float(lower),
                    median=float(median),
                    upper_quartile=float(upper),
                )
            )
    return groups


def discernment_aurocs(prompts: PromptSet, rejections: dict[str, float], seed: int) -> list[DiscernmentAuroc]:
    """The AUROC as what it is: the share of pairs in which the toxic prompt comes out higher, ties counting half."""
    scored = [p for p in prompts if p.id in rejections]
    values = np.array([rejections[p.id] for p in scored])
    higher = (np.sign(values[:, None] - values) + 1) / 2
    sample = PairSample(higher, [p.label for p in scored], prompt_clusters(scored), seed)
    return [
        DiscernmentAuroc(harmless=label, **dict(sample.mean(Label.TOXIC, label)))
        for label in HARMLESS
        if any(p.label is label for p in scored)
    ]
