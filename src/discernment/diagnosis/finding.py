"""A diagnosis in words. What an interval leaves open is said to be open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from discernment.diagnosis.entanglement import RowDifference
from discernment.prompts import Label
from discernment.statistics.intervals import FEWEST_CLUSTERS
from discernment.statistics.pairs import PairMean

if TYPE_CHECKING:
    from discernment.diagnosis.diagnosis import Diagnosis

GROUPS = {
    Label.SEEMINGLY_TOXIC: "a seemingly toxic prompt",
    Label.TOXIC: "another toxic prompt",
    Label.BENIGN: "a benign prompt",
}


def describe(diagnosis: Diagnosis) -> str:
    """The finding, in a few sentences."""
    sentences = [_similarity(diagnosis), _entanglement(diagnosis), _ranking(diagnosis), _layers(diagnosis)]
    return " ".join(sentence for sentence in sentences if sentence)


def _similarity(diagnosis: Diagnosis) -> str:
    """How far a step on a toxic prompt moves each group."""
    steps = {g.row: g for g in diagnosis.steps_on_toxic if g.mean is not None}
    moved = [
        f"{words} {steps[label].mean:.2f}{_ends(steps[label])}"
        for label, words in GROUPS.items()
        if label in steps
    ]
    if not moved:
        return ""
    listed = ", ".join(moved[:-1]) + " and " + moved[-1] if len(moved) > 1 else moved[0]
    return (
        f"A training step on a toxic prompt moves {listed} times as far as a step on that prompt itself would; pairs "
        "that share their wording are left out."
    )


def _entanglement(diagnosis: Diagnosis) -> str:
    """Whether seemingly toxic prompts are moved more than benign, and less than toxic ones."""
    known = {d.against: d for d in diagnosis.differences if d.low is not None}
    if not known:
        return (
            "Whether these differ cannot be said: an interval needs "
            f"{FEWEST_CLUSTERS} prompts or wording frames of each label."
        )
    parts = [
        f"compared with {words} they are moved {_further(known[label])}"
        for label, words in ((Label.BENIGN, "benign prompts"), (Label.TOXIC, "other toxic prompts"))
        if label in known
    ]
    sentence = f"Seemingly toxic prompts: {'; '.join(parts)}"
    benign, toxic = known.get(Label.BENIGN), known.get(Label.TOXIC)
    if benign is None:
        return f"{sentence}; whether any prompt would be moved as far takes benign prompts to tell."
    if (benign.low or 0.0) > 0:
        apart = toxic is not None and (toxic.high or 0.0) < 0
        return (
            f"{sentence}. So a step that teaches refusal of toxic prompts reaches them more than it reaches benign ones"
            f"{', though less than it reaches toxic ones' if apart else ''}."
        )
    return f"{sentence}. So no entanglement beyond that of any two prompts is shown."


def _further(difference: RowDifference) -> str:
    low, high = difference.low or 0.0, difference.high or 0.0
    numbers = f"{difference.difference:+.2f}, {low:+.2f} to {high:+.2f}"
    if low > 0:
        return f"further ({numbers})"
    if high < 0:
        return f"less far ({numbers})"
    return f"no further and no less, as far as can be shown ({numbers})"


def _ranking(diagnosis: Diagnosis) -> str:
    """Whether the model's refusals tell the labels apart."""
    ranking = next((r for r in diagnosis.rankings if r.harmless is Label.SEEMINGLY_TOXIC), None)
    if ranking is None or ranking.mean is None:
        return ""
    sentence = (
        "The rejection probability of a toxic prompt is higher than that of a seemingly toxic one with probability "
        f"{ranking.mean:.2f}{_ends(ranking)}"
    )
    if ranking.low is None or ranking.high is None:
        return f"{sentence}, where 0.5 is chance."
    if ranking.low <= 0.5 <= ranking.high:
        return f"{sentence}, which is not shown to differ from chance."
    return f"{sentence}, which is {'better' if ranking.low > 0.5 else 'worse'} than chance."


def _layers(diagnosis: Diagnosis) -> str:
    """Where the labels mix, and which layer is recommended."""
    reason = diagnosis.recommendation.reason
    probed = [(f.probe_auroc, f) for f in diagnosis.separability if f.probe_auroc is not None]
    if not probed:
        return reason
    lowest, most_mixed = min(probed, key=lambda pair: pair[0])
    best, clearest = max(probed, key=lambda pair: pair[0])
    words = f"The labels mix most after layer {most_mixed.layer} (probe AUROC {lowest:.3f})."
    if best - 1.96 * (clearest.probe_error or 0.0) <= 0.5:
        return (
            f"{words} {reason} No layer is shown to tell them apart better than chance, so refinement has little to "
            "build on."
        )
    return f"{words} {reason}"


def _ends(mean: PairMean) -> str:
    return "" if mean.low is None else f" ({mean.low:.2f} to {mean.high:.2f})"
