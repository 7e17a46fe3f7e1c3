"""How well the labels of prompts can be told from their hidden states, at one layer or at each.

Between states and labels stands the source: prompts of one data set look alike whatever they ask for. So whatever is
fitted here is tested on sources that it was not fitted on, where only a difference of the labels counts.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from discernment.errors import DataError, ModelError
from discernment.models.batch import Batch, length_sorted_batches, one_length
from discernment.models.layer_outputs import layer_outputs
from discernment.models.layers import LayerList, find_layers
from discernment.models.logits import why_not_finite
from discernment.models.self_check import ONE_LENGTH, Probes, Rows, Way, exact_way
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Folds = list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]


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


class LayerSeparation(NamedTuple):
    """How far toxic prompts lie from the others at one layer.

    Attributes:
        layer: The layer, counted from 1.
        within: Mean cosine similarity of two different prompts of one label; the mean state is subtracted first.
        cross: The same for two prompts of different labels.
        plain_cross: The same without subtracting the mean state.
        probe_auroc: AUROC of a linear probe on sources that it was not fitted on; None if a label has only one.
        probe_error: Its standard error over the folds; None if there are fewer than two.
        direction_auroc: AUROC along the difference of the two labels' means, on sources that it was not taken from.
        silhouette: Mean silhouette of the two labels by cosine distance of the centred states (Rousseeuw 1987).
    """

    layer: int
    within: float
    cross: float
    plain_cross: float
    probe_auroc: float | None
    probe_error: float | None
    direction_auroc: float | None
    silhouette: float


class Recommendation(NamedTuple):
    """A layer for stage 1.

    Attributes:
        layer: The layer, counted from 1.
        reason: Why this one, in plain words.
    """

    layer: int
    reason: str


# No inference mode: what a model keeps of it (rotary tables) could not be trained with afterwards.
@torch.no_grad()
def layer_states(
    policy: Policy,
    prompts: PromptSet,
    *,
    batch_size: int = 32,
    pooling: Literal["last", "mean"] = "last",
    path: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Hidden states of prompts after every layer, from one forward pass without the head.

    They are read where the prompt ends, as stage 1 reads them: before what the template writes ahead of every reply
    (`ChatFormat.lead`), behind which the kernel and the rejection probability look.

    Args:
        policy: The policy.
        prompts: The prompts.
        batch_size: Prompts a forward pass.
        pooling: `last` takes the state of the last prompt token, `mean` the mean over the prompt's tokens.
        path: Name of the layer list, where it is not found by itself.
        progress: Called with the number of prompts done after each batch.

    Returns:
        `[layers, prompts, hidden]`, float32, on the CPU; before the final norm, also for the last layer.

    Raises:
        DataError: If there are no prompts, or one does not fit the model's positions.
        ModelError: If the layers are not found, or a state is not finite.
    """
    if not prompts:
        raise DataError(f"{prompts.provenance.name} has no prompts; name a set that has some.")
    layers = find_layers(policy.model, path or policy.layer_path)
    sequences = policy.encode(prompts.asked)
    policy.check_one_model("The separability of layers", sequences)
    check_context(policy, sequences, names_of(prompts))
    batches = list(length_sorted_batches([len(s) for s in sequences], batch_size))
    padded = _takes_padding(policy, layers)
    parts = []
    for rows in batches:
        with policy.acting():
            states = _states(policy, layers, [sequences[r] for r in rows], pooling, padded=padded)
        finite = states.isfinite().all(2).all(0)
        if not finite.all():
            bad = prompts[rows[int(finite.int().argmin())]]
            raise ModelError(
                f"{policy.name} gives hidden states that are not finite for the prompt {bad.text[:60]!r}; "
                f"{why_not_finite(policy.model)}."
            )
        parts.append(states)
        if progress is not None:
            progress(len(rows))
    order = torch.tensor([row for rows in batches for row in rows])
    return torch.cat(parts, dim=1)[:, order.argsort()]


def separability(states: Tensor, prompts: PromptSet) -> list[LayerSeparation]:
    """Measure at each layer how far toxic prompts lie from the others.

    Args:
        states: Hidden states, `[layers, prompts, hidden]`, from `layer_states`.
        prompts: The same prompts, in the same order, with their labels and sources.

    Raises:
        DataError: If there are fewer than two toxic prompts, or than two others.
    """
    labels = np.array([p.label.should_refuse for p in prompts], dtype=bool)
    if min(labels.sum(), (~labels).sum()) < 2:
        raise DataError(
            f"{prompts.provenance.name} needs two toxic prompts and two others at least, to see how far they lie "
            f"apart; {prompts.summary()}."
        )
    from sklearn.metrics import silhouette_score

    folds = probe_folds(labels, [p.source for p in prompts])
    found = []
    for layer, at_layer in enumerate(states.float(), start=1):
        centred = at_layer - at_layer.mean(0)
        within, cross = _mean_cosines(centred, labels)
        probe_auroc, probe_error = _held_out(_probe_scores, at_layer.numpy(), labels, folds)
        direction_auroc, _ = _held_out(_direction_scores, at_layer.numpy(), labels, folds)
        found.append(
            LayerSeparation(
                layer=layer,
                within=within,
                cross=cross,
                plain_cross=_mean_cosines(at_layer, labels)[1],
                probe_auroc=probe_auroc,
                probe_error=probe_error,
                direction_auroc=direction_auroc,
                silhouette=float(silhouette_score(centred.numpy(), labels, metric="cosine")),
            )
        )
    return found


def recommend_layer(found: Sequence[LayerSeparation]) -> Recommendation:
    """The earliest layer, the last one aside, at which a probe is as good as at the best, up to one standard error.

    Of layers that do not differ, the earliest is the cheapest to train up to, and leaves the longest tail to the
    alignment. This is the one-standard-error rule (Breiman et al. 1984, section 3.4.3).

    Args:
        found: What was measured, one a layer, first to last; not empty.
    """
    candidates = found[:-1] or found
    probed = [(f, f.probe_auroc) for f in candidates if f.probe_auroc is not None]
    if not probed:
        clearest = max(candidates, key=lambda f: f.silhouette)
        return Recommendation(
            clearest.layer,
            f"Layer {clearest.layer} has the highest silhouette of the labels ({clearest.silhouette:.3f}). No probe "
            "could be tested on sources that it was not fitted on, because a label has only one source.",
        )
    best, best_auroc = max(probed, key=lambda pair: pair[1])
    error = best.probe_error or 0.0
    chosen, auroc = next(pair for pair in probed if pair[1] >= best_auroc - error)
    numbers = f"{best_auroc:.3f}, standard error {error:.3f}"
    if chosen is best:
        reason = (
            f"Layer {best.layer} has the best probe AUROC on sources that the probe was not fitted on ({numbers}), "
            "and no earlier layer comes within one standard error of it."
        )
    else:
        reason = (
            f"Layer {chosen.layer} is the earliest whose probe AUROC on sources that the probe was not fitted on "
            f"({auroc:.3f}) lies within one standard error of the best, that of layer {best.layer} ({numbers})."
        )
    return Recommendation(chosen.layer, reason)


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
    labels = np.asarray(toxic, dtype=bool)
    within, cross = _mean_cosines(states - states.mean(0) if centre else states, labels)
    auroc, _ = _held_out(_probe_scores, states.numpy(), labels, probe_folds(labels, sources))
    return Separation(within, cross, auroc)


def probe_folds(labels: Sequence[bool] | Flags, sources: Sequence[str], most: int = 5) -> Folds:
    """Row numbers to fit on and to test on, with no source on both sides and both labels on each.

    Args:
        labels: True for the positive label, one a prompt.
        sources: The source of each prompt.
        most: At most so many folds.

    Returns:
        The folds; none if a label has only one source.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    flags = np.asarray(labels, dtype=bool)
    groups = np.asarray(sources)
    folds = min(most, len(set(groups[flags])), len(set(groups[~flags])))
    if folds < 2:
        return []
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(groups, flags, groups)
    return [(fit, test) for fit, test in split if len(set(flags[fit])) == len(set(flags[test])) == 2]


def _held_out(
    scores: Callable[[Floats, Flags, Floats], Floats], states: Floats, labels: Flags, folds: Folds
) -> tuple[float | None, float | None]:
    """Mean AUROC over folds, weighted by their pairs of prompts, and its standard error (Gatz and Smith 1995).

    Scores of different fits are not compared: each fold has its own AUROC.
    """
    if not folds:
        return None, None
    from sklearn.metrics import roc_auc_score

    aurocs, pairs = [], []
    for fit, test in folds:
        aurocs.append(roc_auc_score(labels[test], scores(states[fit], labels[fit], states[test])))
        pairs.append(labels[test].sum() * (~labels[test]).sum())
    weights = np.array(pairs) / np.sum(pairs)
    mean = float(weights @ aurocs)
    if len(folds) == 1:
        return mean, None
    variance = np.sum((weights * (np.array(aurocs) - mean)) ** 2) * len(folds) / (len(folds) - 1)
    return mean, float(np.sqrt(variance))


def _probe_scores(fit: Floats, labels: Flags, test: Floats) -> Floats:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    scores: Floats = probe.fit(fit, labels).decision_function(test)
    return scores


def _direction_scores(fit: Floats, labels: Flags, test: Floats) -> Floats:
    scores: Floats = test @ (fit[labels].mean(0) - fit[~labels].mean(0))
    return scores


def _mean_cosines(states: Tensor, labels: Flags) -> tuple[float, float]:
    """Mean cosine of two different prompts of one label, and of two prompts of different labels."""
    unit = nn.functional.normalize(states, dim=-1)
    cosine = unit @ unit.T
    toxic = torch.from_numpy(labels)
    same = toxic[:, None] == toxic[None, :]
    different_prompts = ~torch.eye(len(toxic), dtype=torch.bool)
    return float(cosine[same & different_prompts].mean()), float(cosine[~same].mean())


def _takes_padding(policy: Policy, layers: LayerList) -> bool:
    """Whether the states of prompts in a padded batch are those of each by itself; see `exact_way`."""

    def states(rows: Rows, *, padded: bool) -> list[Tensor]:
        return list(_states(policy, layers, rows, "last", padded=padded).unbind(1))

    def alone(probes: Probes) -> list[Tensor]:
        return [states([row], padded=False)[0] for row in probes.rows]

    ways = (
        Way("padded batches", lambda probes: states(probes.rows, padded=True)),
        Way(ONE_LENGTH, lambda probes: states(probes.rows, padded=False)),
    )
    return exact_way(policy.model, policy.model.config, "states of layers", alone, ways) == 0


def _states(
    policy: Policy, layers: LayerList, rows: Rows, pooling: Literal["last", "mean"], *, padded: bool
) -> Tensor:
    """Pooled states of all rows, `[layers, rows, hidden]`, in one padded batch or in batches of one length."""
    if padded:
        batch = policy.batch(rows)
        return _run(
            layers, batch, pooling, position_ids=batch.position_ids, attention_mask=batch.attention_mask
        )
    groups = one_length([len(row) for row in rows])
    parts = [_run(layers, policy.batch([rows[n] for n in group]), pooling) for group in groups]
    order = torch.tensor([n for group in groups for n in group])
    return torch.cat(parts, dim=1)[:, order.argsort()]


def _run(layers: LayerList, batch: Batch, pooling: Literal["last", "mean"], **given: Tensor) -> Tensor:
    """Pooled states of one batch, `[layers, batch, hidden]`."""

    def pool(hidden: Tensor) -> Tensor:
        if pooling == "last":
            return hidden[:, -1]  # the padding is on the left
        mask = batch.attention_mask.unsqueeze(-1)
        return hidden.masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1)

    return layer_outputs(layers, batch, pool, **given)
