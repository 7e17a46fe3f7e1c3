"""How far the surface of a prompt gives its label away: what a model can learn without telling harm from harmless.

A contrast between toxic and seemingly toxic prompts that a bag of words or the mere form (length, question mark, first
word) can draw on sources that it never saw is one that training can learn instead of the harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from discernment.errors import DataError
from discernment.prompts.prompt import Label, Prompt
from discernment.prompts.words import words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONTRAST = (Label.TOXIC, Label.SEEMINGLY_TOXIC)
MOST_FOLDS = 5
RESAMPLES = 1000
QUESTION_MARKS = ("?", "\N{FULLWIDTH QUESTION MARK}", "\N{ARABIC QUESTION MARK}")
FEWEST_UNITS = 10
"""Prompts and pairs below which nothing is claimed for others."""


@dataclass(frozen=True)
class LeakScore:
    """How well one surface model tells the labels on sources that it was not fitted on.

    Attributes:
        auroc: Probability that it ranks a random toxic prompt over a random seemingly toxic one of the same fold
            (ties count half): 0.5 is chance, below it what was learned is turned around on other sources.
        low: Lower end of the 95 % bootstrap interval over prompts, matched pairs drawn together; 0 with fewer than ten of these.
        high: Upper end; 1 then.
        toxic: Number of toxic prompts ranked.
        seemingly_toxic: Number of seemingly toxic prompts ranked.
        folds: Number of folds of held-out sources.
    """

    auroc: float
    low: float
    high: float
    toxic: int
    seemingly_toxic: int
    folds: int


@dataclass(frozen=True)
class LabelLeaks:
    """What the surface gives away of the labels.

    Attributes:
        bag_of_words: By the words and word pairs of the prompt.
        form: By its length, question mark and first word.
        pairs: By the form, on matched pairs alone; None where there are too few.
    """

    bag_of_words: LeakScore
    form: LeakScore
    pairs: LeakScore | None


def label_leaks(prompts: Iterable[Prompt], *, seed: int = 0) -> LabelLeaks:
    """Measure label leaks by cross-validation over held-out sources.

    Every fold holds out whole sources, of both labels, so that a model is never asked about a source that it was fitted
    on, and scores of different fits are never compared.

    Args:
        prompts: The prompts; those that are neither toxic nor seemingly toxic are passed over.
        seed: Of the bootstrap.

    Raises:
        DataError: If one of the two labels is missing or comes from a single source.
    """
    contrast = [p for p in prompts if p.label in CONTRAST]
    folds = _folds(contrast)
    matched = _matched(contrast)
    try:
        pairs = _score(matched, _folds(matched), _form_model, seed)
    except DataError:
        pairs = None
    return LabelLeaks(
        bag_of_words=_score(contrast, folds, _bag_of_words_model, seed),
        form=_score(contrast, folds, _form_model, seed),
        pairs=pairs,
    )


def form_features(text: str) -> dict[str, float]:
    """What can be seen of a prompt without reading it: length, final question mark, first word."""
    said = words(text)
    return {
        "log_words": math.log1p(len(said)),
        "log_characters": math.log1p(len(text.strip())),
        "question": float(text.strip().endswith(QUESTION_MARKS)),
        f"first={said[0] if said else ''}": 1.0,
    }


def _bag_of_words_model() -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    # In the dual the many rare word pairs cost nothing: 40 times faster than the default solver.
    dual = {"solver": "liblinear", "dual": True, "max_iter": 1000, "random_state": 0}
    counts = CountVectorizer(tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2))
    return _classifier(counts, **dual)


def _form_model() -> Any:
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.preprocessing import FunctionTransformer

    features = FunctionTransformer(lambda texts: [form_features(text) for text in texts])
    return _classifier(features, DictVectorizer(), solver="newton-cholesky")


def _classifier(*features: Any, **options: Any) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(*features, LogisticRegression(class_weight="balanced", **options))


def _matched(prompts: Sequence[Prompt]) -> list[Prompt]:
    by_id = {p.id: p for p in prompts}
    return [p for p in prompts if p.partner in by_id and by_id[p.partner].label is not p.label]


def _folds(prompts: Sequence[Prompt]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    from sklearn.model_selection import StratifiedGroupKFold

    sources = {label: {p.source for p in prompts if p.label is label} for label in CONTRAST}
    for label, found in sources.items():
        if len(found) < 2:
            has = "no prompt" if not found else f"prompts of one source only ({min(found)})"
            raise DataError(
                f"Label leaks cannot be measured: {label} has {has}, and sources are held out in turn; "
                "give at least two sources of toxic and two of seemingly toxic prompts."
            )
    splitter = StratifiedGroupKFold(min(MOST_FOLDS, *(len(found) for found in sources.values())))
    labels = [p.label.value for p in prompts]
    folds = [
        (train, test)
        for train, test in splitter.split(labels, labels, [p.source for p in prompts])
        if len({labels[i] for i in train}) == len({labels[i] for i in test}) == len(CONTRAST)
    ]
    if not folds:
        raise DataError(
            "Label leaks cannot be measured: no choice of held-out sources leaves both labels on both sides; "
            "add sources."
        )
    return folds


def _score(
    prompts: Sequence[Prompt],
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    model: Any,
    seed: int,
) -> LeakScore:
    import numpy as np
    from scipy.stats import bootstrap

    texts = [p.text for p in prompts]
    toxic = np.array([p.label is Label.TOXIC for p in prompts])
    unit_of = _units(prompts)
    ranked = []
    for train, test in folds:
        try:
            fitted = model().fit([texts[i] for i in train], toxic[train])
        except ValueError as error:
            raise DataError("Label leaks cannot be measured: the prompts have no words to tell.") from error
        scores = fitted.decision_function([texts[i] for i in test])
        # Ranks are all that matters, and equal ranks are ties.
        ranked.append((np.unique(scores, return_inverse=True)[1], toxic[test], unit_of[test]))

    def statistic(drawn: NDArray[np.intp]) -> float:
        weights = np.bincount(drawn, minlength=len(prompts))
        return _auroc([(rank, is_toxic, weights[unit]) for rank, is_toxic, unit in ranked])

    tested = np.unique(np.concatenate([unit for _, _, unit in ranked]))
    low, high = 0.0, 1.0  # of so few units an interval would be far too narrow
    if len(tested) >= FEWEST_UNITS:
        drawn = bootstrap(
            (tested,), statistic, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=seed
        )
        # A draw without one of the labels has no AUROC.
        low, high = np.nanquantile(drawn.bootstrap_distribution, [0.025, 0.975])
    is_toxic = np.concatenate([labels for _, labels, _ in ranked])
    return LeakScore(
        auroc=statistic(tested),
        low=float(low),
        high=float(high),
        toxic=int(is_toxic.sum()),
        seemingly_toxic=int((~is_toxic).sum()),
        folds=len(folds),
    )


def _units(prompts: Sequence[Prompt]) -> NDArray[np.intp]:
    """What the bootstrap draws: a prompt, or both prompts of a matched pair."""
    import numpy as np

    position: Mapping[str, int] = {p.id: i for i, p in enumerate(prompts)}
    return np.array([min(i, position.get(p.partner or "", i)) for i, p in enumerate(prompts)], dtype=np.intp)


def _auroc(ranked: Iterable[tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.intp]]]) -> float:
    """Share of (toxic, seemingly toxic) couples within a fold that are ranked rightly, each prompt with its weight.

    Args:
        ranked: Per fold: ranks, whether toxic, weights; each of shape (prompts of the fold,).
    """
    import numpy as np

    right = couples = 0.0
    for rank, toxic, weight in ranked:
        above = np.bincount(rank, weights=weight * toxic)
        below = np.bincount(rank, weights=weight * ~toxic)
        right += float(above @ (np.cumsum(below) - below / 2))
        couples += float(above.sum() * below.sum())
    return right / couples if couples else math.nan
