"""How well the labels of prompts can be told from their hidden states at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

__all__ = ["Separation", "probe_auroc", "separation"]


class Separation(NamedTuple):
    """How far two labels lie apart at one layer.

    Attributes:
        within: Mean cosine similarity of two different prompts of one label.
        cross: Mean cosine similarity of two prompts of different labels.
        probe_auroc: AUROC of a linear probe on sources that it was not fitted on; None if there are fewer than two.
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


def probe_auroc(
    states: np.ndarray, labels: np.ndarray, sources: Sequence[str], folds: int = 5
) -> float | None:
    """AUROC of a linear probe, cross-validated over sources.

    Args:
        states: Hidden states, `[prompts, hidden]`.
        labels: True for the positive label, `[prompts]`.
        sources: The source of each prompt; no source is on both sides of a fold.
        folds: At most so many folds.

    Returns:
        The AUROC of all held-out scores together, or None if there are fewer than two sources or one label only.
    """
    folds = min(folds, len(set(sources)))
    if folds < 2 or len(set(labels.tolist())) < 2:
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    try:
        scores = cross_val_predict(
            probe, states, labels, groups=list(sources), cv=GroupKFold(folds), method="decision_function"
        )
    except ValueError:  # a fold whose training part has one label only
        return None
    return float(roc_auc_score(labels, scores))
