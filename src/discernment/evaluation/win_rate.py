"""How often one policy's replies are preferred to another's, each pair judged in both orders.

The win rate of AlpacaEval (Li et al. 2023; Dubois et al. 2024, arXiv 2404.04475) with two cautions: judges favour a
position, so a preference counts only if it survives swapping the replies, and judges favour length, so the lengths
and the win rate of longer and of other replies stand beside it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from discernment.errors import DataError
from discernment.evaluation.groups import cluster_ids
from discernment.evaluation.sample import Sample
from discernment.files import content_hash
from discernment.frozen import Frozen
from discernment.judges.preference import Preference, PreferenceJudge
from discernment.keyed_log import KeyedLog
from discernment.models.endpoint import ask_all
from discernment.models.thoughts import split_thought
from discernment.prompts.conversation import Conversation, with_text
from discernment.statistics.intervals import ANY_RATE, paired_bootstrap

TIE = 0.5
POINTS = {("a", "b"): 1.0, ("b", "a"): 0.0}
"""A win and a loss, only if the judge said so in both orders: ours is `a` first, `b` second. All else is a tie."""
ALIKE: tuple[Preference, Preference] = ("tie", "tie")
"""Of replies that are the same word for word, about which nobody is asked."""
NO_ANSWER: tuple[Preference, Preference] = ("unscored", "unscored")
PREFERENCES: dict[str, Preference] = {preference: preference for preference in get_args(Preference)}


class WinRate(Frozen):
    """One method against another by a judge's preferences.

    Attributes:
        method: The method.
        against: The method that it is compared with.
        judge: The judge's name.
        value: Wins plus half of the ties, as a share of the prompts with a preference in both orders.
        low: Lower end of its 95 % bootstrap interval over prompts; (0, 1) with fewer than ten clusters.
        high: Upper end.
        wins: Prompts where the judge preferred the method in both orders.
        ties: Prompts where it preferred neither in both, or changed its mind with the order.
        losses: Prompts where it preferred the other in both orders.
        reversed: The ties where it preferred whatever stood in the same place: its position bias.
        unscored: Prompts left out, because the judge could not tell in one order at least, a thought never ended, or there is
            no reply.
        words: Mean words of the method's replies, over the prompts with a preference.
        words_against: The same of the other's.
        value_longer: The win rate where the method's reply is longer; None if it never is.
        value_not_longer: The win rate where it is not; None if it always is.
        longer: Number of prompts where it is longer.
    """

    method: str
    against: str
    judge: str
    value: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    reversed: int
    unscored: int
    words: float
    words_against: float
    value_longer: float | None
    value_not_longer: float | None
    longer: int


class _Question(NamedTuple):
    prompt: str
    a: str
    b: str


def win_rate(
    ours: Sequence[Sample],
    theirs: Sequence[Sample],
    judge: PreferenceJudge,
    *,
    method: str,
    against: str,
    cache: Path | None = None,
    concurrency: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> WinRate:
    """Compare the replies of two methods to the same prompts.

    Args:
        ours: Samples of the method.
        theirs: Samples of the other; prompts that only one of them has are left out, and those of which one was asked another
            text or end of it.
        judge: Who compares.
        method: The method's name.
        against: The other's name.
        cache: JSON-lines file for the answers, so that none is asked for twice; `unscored` ones are asked again.
        concurrency: Questions asked at once.
        seed: Fixes the resamples of the bootstrap.
        progress: Called with 1 after each question that had to be asked.

    Raises:
        DataError: If the two have no prompt in common, or no pair of replies got a preference in both orders.
    """
    others = {s.key: s for s in theirs}
    pairs = [(s, others[s.key]) for s in ours if s.key in others and _asked(s) == _asked(others[s.key])]
    if not pairs:
        raise DataError(
            f"{method} and {against} have no prompt in common; evaluate both on the same benchmarks."
        )
    orders = [_orders(a, b) for a, b in pairs]
    questions = [q for both in orders if both and both[0] != both[1] for q in both]
    answers = _ask(judge, questions, cache, concurrency, progress)
    said = [_said(both, answers) for both in orders]
    if all("unscored" in both for both in said):
        trouble = getattr(judge, "trouble", None)
        why = f" (last: {trouble})" if trouble else ""
        raise DataError(
            f"{judge.name} gave no pair of replies a preference in both orders{why}; mend the judge."
        )
    return _counted(pairs, said, seed, method=method, against=against, judge=judge.name)


def _asked(sample: Sample) -> str:
    """All that the policy was asked: which reply is better may hang on an earlier turn or a system message."""
    return Conversation.of(with_text(sample.asked, sample.judged_with)).whole


def _answer(sample: Sample) -> str | None:
    """What was answered; None where nothing was, which is no empty answer."""
    if sample.unscored_reason and not sample.completion:
        return None
    return split_thought(sample.completion).answer


def _orders(a: Sample, b: Sample) -> tuple[_Question, _Question] | None:
    """Both orders of two answers; None if there is no reply, or a thought that never ends."""
    ours, theirs = _answer(a), _answer(b)
    if ours is None or theirs is None:
        return None
    asked = _asked(a)
    return _Question(asked, ours, theirs), _Question(asked, theirs, ours)


def _said(
    both: tuple[_Question, _Question] | None, answers: Mapping[_Question, Preference]
) -> tuple[Preference, Preference]:
    """The preferences in both orders."""
    if both is None:
        return NO_ANSWER
    return ALIKE if both[0] == both[1] else (answers[both[0]], answers[both[1]])


def _counted(
    pairs: Sequence[tuple[Sample, Sample]], said: Sequence[tuple[str, str]], seed: int, **names: str
) -> WinRate:
    """The win rate over the pairs that got a preference in both orders."""
    scored = [n for n, both in enumerate(said) if "unscored" not in both]
    points = np.array([POINTS.get(said[n], TIE) for n in scored])
    words, words_against = (
        np.array([len((_answer(pairs[n][side]) or "").split()) for n in scored]) for side in (0, 1)
    )
    longer = words > words_against
    clusters = cluster_ids([pairs[n][0] for n in scored])
    interval = paired_bootstrap(points, np.zeros_like(points), clusters=clusters, seed=seed, limits=ANY_RATE)
    return WinRate(
        **names,
        value=float(points.mean()),
        low=interval.low,
        high=interval.high,
        wins=int((points == 1).sum()),
        ties=int((points == TIE).sum()),
        losses=int((points == 0).sum()),
        reversed=sum(said[n] in (("a", "a"), ("b", "b")) for n in scored),
        unscored=len(pairs) - len(scored),
        words=float(words.mean()),
        words_against=float(words_against.mean()),
        value_longer=float(points[longer].mean()) if longer.any() else None,
        value_not_longer=float(points[~longer].mean()) if not longer.all() else None,
        longer=int(longer.sum()),
    )


def _ask(
    judge: PreferenceJudge,
    questions: Iterable[_Question],
    cache: Path | None,
    concurrency: int,
    progress: Callable[[int], None] | None,
) -> dict[_Question, Preference]:
    """Answers to all questions; each is asked once, and written down as soon as its turn comes."""
    keys = {q: content_hash([judge.fingerprint, *q]) for q in questions}
    known: KeyedLog[Preference] = KeyedLog(
        cache, lambda row: PREFERENCES[row["better"]], "is no preference; delete the file to ask anew"
    )
    answers = {q: known[key] for q, key in keys.items() if key in known}
    unknown = [q for q in keys if q not in answers]
    for question, better in zip(
        unknown, ask_all(lambda q: judge.compare(*q), unknown, concurrency), strict=True
    ):
        answers[question] = better
        if better != "unscored":
            known.add(keys[question], better, {"better": better})
        if progress is not None:
            progress(1)
    return answers
