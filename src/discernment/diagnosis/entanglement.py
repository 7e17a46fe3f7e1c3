"""How far steps on toxic prompts reach others: label by label, between matched partners, and where they reach furthest.

Rows and columns of a similarity are as in `diagnosis.similarity`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from discernment.diagnosis.similarity import GroupPair, require_labels
from discernment.errors import DataError
from discernment.frozen import FiniteFrozen
from discernment.kernel.kernel import Floats
from discernment.prompts import Label, Prompt
from discernment.prompts.clusters import partner_links, prompt_clusters
from discernment.statistics.pairs import PairMean, PairSample, interval, pair_mean, square


class RowDifference(FiniteFrozen):
    """How much further a step on a toxic prompt moves seemingly toxic prompts than those of another label.

    Attributes:
        against: The other label.
        difference: Difference of the mean row-normalised similarities; None if one of them is not known.
        low: Lower end of its paired 95 % interval; None with fewer than ten clusters of a label.
        high: Upper end.
    """

    against: Label
    difference: float | None
    low: float | None
    high: float | None


class MatchedPair(FiniteFrozen):
    """A seemingly toxic prompt (row) and the toxic prompt that it is matched with (column).

    Attributes:
        seemingly_toxic_id: The id of the one.
        toxic_id: The id of the other.
        similarity: Their similarity; None if one of them is unscored.
    """

    seemingly_toxic_id: str
    toxic_id: str
    similarity: float | None


class MatchedPairs(FiniteFrozen):
    """Matched partners beside all other pairs of a seemingly toxic (row) and a toxic prompt (column).

    Attributes:
        pairs: The matched pairs; empty if no prompt has its partner among the prompts.
        matched: Their mean; the bootstrap draws whole pairs.
        unmatched: The mean of the other pairs.
        difference: `matched` minus `unmatched`; None if one of them has no pair.
        difference_low: Lower end of its paired interval: each resample gives both means.
        difference_high: Upper end.
    """

    pairs: tuple[MatchedPair, ...]
    matched: PairMean
    unmatched: PairMean
    difference: float | None
    difference_low: float | None
    difference_high: float | None


class EntangledPair(FiniteFrozen):
    """A prompt that should be answered (row) and a toxic one (column) that are alike to the model.

    Attributes:
        harmless_id: The id of the prompt that should be answered.
        harmless_label: Its label.
        harmless_text: Its text (untrusted).
        toxic_id: The id of the toxic prompt.
        toxic_text: Its text (untrusted).
        similarity: How far a step on the toxic prompt moves the harmless one.
    """

    harmless_id: str
    harmless_label: Label
    harmless_text: str
    toxic_id: str
    toxic_text: str
    similarity: float


def steps_on_toxic(
    similarity: Floats, labels: Sequence[Label], clusters: npt.NDArray[np.int64], seed: int
) -> tuple[list[GroupPair], list[RowDifference]]:
    """How far steps on toxic prompts move each group, and seemingly toxic prompts more than the others."""
    of_one_wording = (clusters[:, None] == clusters) & ~np.eye(len(clusters), dtype=bool)
    sample = PairSample(np.where(of_one_wording, np.nan, similarity), labels, clusters, seed)
    steps = {
        label: GroupPair(row=label, column=Label.TOXIC, **dict(sample.mean(label, Label.TOXIC)))
        for label in Label
        if label in labels
    }
    ours = steps.pop(Label.SEEMINGLY_TOXIC)
    differences = []
    for against, theirs in steps.items():
        resampled = None
        if ours.low is not None and theirs.low is not None:
            reached = sample.resampled(Label.SEEMINGLY_TOXIC, Label.TOXIC)
            resampled = reached - sample.resampled(against, Label.TOXIC)
        difference, low, high = _difference(ours, theirs, resampled)
        differences.append(RowDifference(against=against, difference=difference, low=low, high=high))
    return [ours, *steps.values()], differences


def matched_pairs(similarity: npt.ArrayLike, prompts: Sequence[Prompt], seed: int = 0) -> MatchedPairs:
    """Similarity of matched partners beside that of all other seemingly toxic and toxic prompts.

    Partners share their wording, other pairs do not: where they are no more alike than others, the kernel follows
    something else than the wording.

    Args:
        similarity: As in `group_table`.
        prompts: The prompts; pairs are read from their `partner`, clusters are those of `prompt_clusters`.
        seed: Fixes the resamples.

    Raises:
        DataError: If there is no toxic or no seemingly toxic prompt, or the shapes do not fit.
    """
    labels = [p.label for p in prompts]
    require_labels(labels, Label.TOXIC, Label.SEEMINGLY_TOXIC)
    sample = PairSample(similarity, labels, prompt_clusters(prompts), seed)
    partners = _partners(prompts)
    rows, columns = np.array(partners, dtype=np.intp).reshape(-1, 2).T
    values = sample.values[rows, columns]
    sample.values[rows, columns] = np.nan  # what is left are the others
    unmatched = sample.mean(Label.SEEMINGLY_TOXIC, Label.TOXIC)

    scored = np.isfinite(values)
    resampled = None
    if sample.enough(rows[scored]):
        drawn = sample.drawn[:, rows[scored]]
        with np.errstate(invalid="ignore"):
            resampled = drawn @ values[scored] / drawn.sum(axis=1)
    matched = pair_mean(values, resampled)

    if resampled is not None:
        resampled = resampled - sample.resampled(Label.SEEMINGLY_TOXIC, Label.TOXIC)
    difference, low, high = _difference(matched, unmatched, resampled)
    return MatchedPairs(
        pairs=tuple(
            MatchedPair(
                seemingly_toxic_id=prompts[row].id,
                toxic_id=prompts[column].id,
                similarity=float(value) if np.isfinite(value) else None,
            )
            for (row, column), value in zip(partners, values, strict=True)
        ),
        matched=matched,
        unmatched=unmatched,
        difference=difference,
        difference_low=low,
        difference_high=high,
    )


def most_entangled(
    similarity: npt.ArrayLike, prompts: Sequence[Prompt], count: int = 10
) -> list[EntangledPair]:
    """The pairs of a toxic prompt and one that should be answered with the highest similarity, highest first.

    Args:
        similarity: `[n, n]`; NaN for unscored pairs, which are left out.
        prompts: The prompts.
        count: At most so many pairs.

    Raises:
        DataError: If there is no toxic prompt or no other, or the shapes do not fit.
    """
    similarity = square(similarity, len(prompts))
    toxic = np.array([p.label.should_refuse for p in prompts])
    if toxic.all() or not toxic.any():
        missing = "toxic prompt" if not toxic.any() else "prompt that should be answered"
        raise DataError(f"There is no {missing} among the {len(prompts)} prompts; add some.")
    rows, columns = np.nonzero(~toxic[:, None] & toxic & np.isfinite(similarity))
    highest_first = np.argsort(-similarity[rows, columns], kind="stable")[:count]
    return [
        EntangledPair(
            harmless_id=harmless.id,
            harmless_label=harmless.label,
            harmless_text=harmless.whole,
            toxic_id=other.id,
            toxic_text=other.whole,
            similarity=float(similarity[row, column]),
        )
        for row, column in zip(rows[highest_first], columns[highest_first], strict=True)
        for harmless, other in [(prompts[row], prompts[column])]
    ]


def _difference(
    one: PairMean, other: PairMean, resampled: Floats | None
) -> tuple[float | None, float | None, float | None]:
    """The difference of two means with the interval of `resampled`; nothing where one of them is not known."""
    if one.mean is None or other.mean is None:
        return None, None, None
    return one.mean - other.mean, *interval(resampled)


def _partners(prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
    """Row numbers of matched (seemingly toxic, toxic) prompts, each pair once even if both name each other."""
    return sorted(
        {
            (row, column)
            for a, b in partner_links(prompts)
            for row, column in ((a, b), (b, a))
            if prompts[row].label is Label.SEEMINGLY_TOXIC and prompts[column].label is Label.TOXIC
        }
    )
