"""How well the labels of prompts can be told from their hidden states at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

__all__ = ["Separation", "probe_auroc", "probe_folds", "separation"]


class Separation(NamedTuple):
    """How far two labels lie apart at one layer.

    Attributes:
        within: Mean cosine similarity of two different prompts of one label.
        cross: Mean cosine similarity of two prompts of different labels.
        probe_auroc: AUROC of a linear probe on sources that it was not fitted on; None if a label has only one.
    """

    within: float
    cross: float
    probe_auroc: float | None


def separation(
    states: Tensor, toxic: Sequence[bool], sources: Sequence[str], *, centre: bool = True
) -> Separation:
    """Measure how far toxic prompts lie from the others.

    Args:
        states: Hidden states, one a prompt, `[prompts, hidden]`.
        toxic: Whether each prompt is toxic.
        sources: Where each prompt comes from; the probe is tested on sources that it has not seen.
        centre: Subtract the mean state first. Without it a few huge dimensions make all prompts look alike.
    """
    states = states.float()
    labels = torch.tensor(toxic)
    unit = torch.nn.functional.normalize(states - states.mean(0) if centre else states, dim=-1)
    cosine = unit @ unit.T
    same = labels[:, None] == labels[None, :]
    different_prompts = ~torch.eye(len(labels), dtype=torch.bool)
    return Separation(
        within=float(cosine[same & different_prompts].mean()),
        cross=float(cosine[~same].mean()),
        probe_auroc=probe_auroc(states.numpy(), labels.numpy(), sources),
    )


def probe_folds(
    labels: Sequence[bool] | np.ndarray, sources: Sequence[str], most: int = 5
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers to fit on and to test on, with no source on both sides and both labels on each.

    Args:
        labels: True for the positive label, one a prompt.
        sources: The source of each prompt.
        most: At most so many folds.

    Returns:
        The folds; none if a label has only one source.
    """
    flags = np.asarray(labels, dtype=bool)
    groups = np.asarray(sources)
    folds = min(most, len(set(groups[flags])), len(set(groups[~flags])))
    if folds < 2:
        return []
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(groups, flags, groups)
    return [(fit, test) for fit, test in split if len(set(flags[fit])) == len(set(flags[test])) == 2]


def probe_auroc(states: np.ndarray, labels: np.ndarray, sources: Sequence[str]) -> float | None:
    """AUROC of a linear probe, cross-validated over sources.

    Scores of different fits are not compared: each fold has its own AUROC, weighted by its pairs of prompts.

    Args:
        states: Hidden states, `[prompts, hidden]`.
        labels: True for the positive label, `[prompts]`.
        sources: The source of each prompt; no source is on both sides of a fold.

    Returns:
        The AUROC, or None if a label has only one source.
    """
    found = []
    for fit, test in probe_folds(labels, sources):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        scores = probe.fit(states[fit], labels[fit]).decision_function(states[test])
        positives = int(labels[test].sum())
        found.append((roc_auc_score(labels[test], scores), positives * (len(test) - positives)))
    if not found:
        return None
    return float(np.average([auroc for auroc, _ in found], weights=[pairs for _, pairs in found]))
