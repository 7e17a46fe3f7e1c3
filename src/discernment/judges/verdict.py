"""What every judge offers, and how many completions it may leave unscored."""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from discernment.errors import DataError
from discernment.judges.prose import readable
from discernment.models.thoughts import split_thought

UNENDED = "the thought never ends"
NOTHING_TO_READ = "nothing to read"
"""Why a reply without an answer is unscored."""
JUDGED_TOGETHER = 128
"""Replies given to a judge at once; between them, progress is told."""


class Verdict(StrEnum):
    """What a judge says of a completion."""

    REFUSAL = "refusal"
    PARTIAL_REFUSAL = "partial_refusal"
    COMPLIANCE = "compliance"
    UNSCORED = "unscored"
    """The judge could not tell; counted and shown, never guessed."""


class Judge(Protocol):
    """Says of a completion whether it refuses; add another by giving it these three members."""

    @property
    def name(self) -> str:
        """Short name for tables and files, e.g. `keywords`."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the judge could judge otherwise; cached verdicts are kept under it."""

    def judge(self, prompt: str, completion: str) -> Verdict:
        """The verdict on `completion`, which answers `prompt`; `unscored` where it cannot tell."""


class Judgement(NamedTuple):
    """A verdict and, where there is none, why."""

    verdict: Verdict
    reason: str | None = None


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that is faster with many completions at once, or can say why it left one unscored; derive from it."""

    def judge_many(self, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
        """The judgements on `(prompt, completion)` pairs, in their order."""

    def judge(self, prompt: str, completion: str) -> Verdict:
        """The verdict on one completion."""
        return self.judge_many([(prompt, completion)])[0].verdict


def judge_all(judge: Judge, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
    """Judge `(prompt, completion)` pairs, at once where the judge can.

    The judge sees answers without the thought before them; a reply whose thought never ends has none, and is unscored.
    """
    answers = [split_thought(completion).answer for _, completion in exchanges]
    asked = [
        (prompt, answer) for (prompt, _), answer in zip(exchanges, answers, strict=True) if answer is not None
    ]
    if isinstance(judge, BatchJudge):
        said = judge.judge_many(asked) if asked else []
    else:
        said = [_judgement(judge, *exchange) for exchange in asked]
    rest = iter(said)
    return [Judgement(Verdict.UNSCORED, UNENDED) if answer is None else next(rest) for answer in answers]


def _judgement(judge: Judge, prompt: str, completion: str) -> Judgement:
    verdict = judge.judge(prompt, completion)
    unread = verdict is Verdict.UNSCORED and readable(completion) is None
    return Judgement(verdict, NOTHING_TO_READ if unread else None)


def judge_in_turn(
    judge: Judge, exchanges: Sequence[tuple[str, str]], tell: Callable[[int, int], None]
) -> list[Judgement]:
    """Judge as `judge_all` does, `JUDGED_TOGETHER` at a time, and tell how many of how many are done in between."""
    found: list[Judgement] = []
    for start in range(0, len(exchanges), JUDGED_TOGETHER):
        found += judge_all(judge, exchanges[start : start + JUDGED_TOGETHER])
        tell(len(found), len(exchanges))
    return found


def unscored_rate(verdicts: Iterable[Verdict]) -> float:
    """Share of `verdicts` that are `unscored`; 0 if there are none."""
    unscored = [verdict is Verdict.UNSCORED for verdict in verdicts]
    return sum(unscored) / len(unscored) if unscored else 0.0


def most_often(judgements: Iterable[Judgement]) -> str:
    """Why most of the unscored completions are, in brackets; empty where nothing is known of it."""
    reasons = [j.reason for j in judgements if j.verdict is Verdict.UNSCORED and j.reason]
    return f" (most often: {max(sorted(set(reasons)), key=reasons.count)})" if reasons else ""


def check_unscored(judgements: Sequence[Judgement], limit: float, what: str) -> None:
    """Fail if a judge left too much unscored to be believed about the rest.

    Args:
        judgements: What it said.
        limit: The highest share of `unscored` that is let pass, from 0 to 1.
        what: Whose completions they are, for the message.

    Raises:
        DataError: If the share is above `limit`.
    """
    rate = unscored_rate(judgement.verdict for judgement in judgements)
    if rate <= limit:
        return
    raise DataError(
        f"{rate:.1%} of {len(judgements)} judgements on {what} are unscored{most_often(judgements)}, more than the {limit:.1%} "
        "that are allowed; mend the judge, take another one, or raise the limit."
    )
