"""What a second judge says of the same replies: how often two judges differ, and on which replies.

No rate is made of its verdicts. Where two judges agree they can both be wrong; where they differ one of them is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from discernment.errors import DataError
from discernment.evaluation.sample import Draw, Sample
from discernment.files import read_rows, write_json_lines
from discernment.frozen import Frozen
from discernment.judges import Judge
from discernment.judges.verdict import Judgement, Verdict, judge_in_turn

FILE = "verdicts.jsonl"


class SecondVerdict(Frozen):
    """What the second judge said of one reply.

    Attributes:
        benchmark: The prompt's benchmark.
        prompt_id: Its id there.
        draw: Which reply to the prompt, counted from 0.
        verdict: The verdict.
        unscored_reason: Why there is none, where the judge says so.
    """

    benchmark: str
    prompt_id: str
    draw: int
    verdict: Verdict
    unscored_reason: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Which reply it is."""
        return self.benchmark, self.prompt_id, self.draw


class JudgeDifference(Frozen):
    """How often two judges differ on the replies of one method.

    Attributes:
        method: The method.
        judge: The judge that the rates are of.
        second_judge: The other.
        replies: Replies that both have a verdict on.
        unscored: Replies that one of them left unscored.
        differ: Replies whose verdicts are not the same.
        refusals: Replies that the first alone calls a refusal.
        second_refusals: Replies that the second alone calls one.
        kappa: Cohen's kappa of refusal against the rest; None if both always say the same one thing.
    """

    method: str
    judge: str
    second_judge: str
    replies: int
    unscored: int
    differ: int
    refusals: int
    second_refusals: int
    kappa: float | None


class Disagreement(Frozen):
    """One reply that two judges see differently.

    Attributes:
        sample: The prompt with its replies.
        completion: The reply (untrusted text).
        verdicts: What the first and the second said.
    """

    sample: Sample
    completion: str
    verdicts: tuple[Verdict, Verdict]


def judge_again(
    samples: Sequence[Sample],
    judge: Judge,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[SecondVerdict]:
    """Have a second judge judge every reply, and write `out/verdicts.jsonl`.

    What has no reply, since its prompt was never asked, stays unscored for the same reason.

    Args:
        samples: The samples of an evaluation.
        judge: The second judge.
        out: An existing directory.
        progress: Called with what is done, how much of it, and of how much.
    """
    replies = [reply for sample in samples for reply in _replies(sample)]
    tell = partial(progress, "second judgements") if progress is not None else lambda done, of: None
    asked = [n for n, reply in enumerate(replies) if reply.completion or not reply.unscored_reason]
    said = [Judgement(Verdict.UNSCORED, reply.unscored_reason) for reply in replies]
    exchanges = [(replies[n].sample.judged_with, replies[n].completion) for n in asked]
    for n, judgement in zip(asked, judge_in_turn(judge, exchanges, tell), strict=True):
        said[n] = judgement
    found = [
        SecondVerdict(
            benchmark=reply.sample.benchmark,
            prompt_id=reply.sample.prompt_id,
            draw=reply.draw,
            verdict=judgement.verdict,
            unscored_reason=judgement.reason,
        )
        for reply, judgement in zip(replies, said, strict=True)
    ]
    write_json_lines(out / FILE, [row.model_dump(mode="json") for row in found])
    return found


def read_second_verdicts(path: Path) -> list[SecondVerdict]:
    """Read what `judge_again` wrote.

    Raises:
        DataError: If the file is missing or damaged.
    """
    return read_rows(path, SecondVerdict, "a verdict")


def disagreements(samples: Sequence[Sample], second: Sequence[SecondVerdict]) -> list[Disagreement]:
    """The replies that both judges have a verdict on, and not the same, in the order of the samples."""
    return [
        Disagreement(sample=sample, completion=completion, verdicts=verdicts)
        for sample, completion, verdicts in _both(samples, second)
        if Verdict.UNSCORED not in verdicts and len(set(verdicts)) > 1
    ]


def judge_difference(
    samples: Sequence[Sample],
    second: Sequence[SecondVerdict],
    *,
    method: str,
    judge: str,
    second_judge: str,
) -> JudgeDifference:
    """Count how often two judges differ.

    Args:
        samples: The samples, with the first judge's verdicts.
        second: The second judge's verdicts on the same replies.
        method: The method that replied.
        judge: The first judge's name.
        second_judge: The second's.

    Raises:
        DataError: If the two are not about the same replies.
    """
    from sklearn.metrics import cohen_kappa_score

    said = [verdicts for _, _, verdicts in _both(samples, second)]
    scored = [verdicts for verdicts in said if Verdict.UNSCORED not in verdicts]
    refusals = [(a is Verdict.REFUSAL, b is Verdict.REFUSAL) for a, b in scored]
    varied = len({one for both in refusals for one in both}) > 1
    return JudgeDifference(
        method=method,
        judge=judge,
        second_judge=second_judge,
        replies=len(scored),
        unscored=len(said) - len(scored),
        differ=sum(a is not b for a, b in scored),
        refusals=refusals.count((True, False)),
        second_refusals=refusals.count((False, True)),
        kappa=float(cohen_kappa_score(*zip(*refusals, strict=True))) if varied else None,
    )


def _both(
    samples: Sequence[Sample], second: Sequence[SecondVerdict]
) -> list[tuple[Sample, str, tuple[Verdict, Verdict]]]:
    said = {row.key: row.verdict for row in second}
    replies = [reply for sample in samples for reply in _replies(sample)]
    if said.keys() != {reply.key for reply in replies}:
        raise DataError("The second judge's verdicts are not on these replies; judge them again.")
    return [(reply.sample, reply.completion, (reply.verdict, said[reply.key])) for reply in replies]


class _Reply(NamedTuple):
    sample: Sample
    draw: int
    completion: str
    verdict: Verdict
    unscored_reason: str | None

    @property
    def key(self) -> tuple[str, str, int]:
        return (*self.sample.key, self.draw)


def _replies(sample: Sample) -> list[_Reply]:
    drawn: tuple[Sample | Draw, ...] = (sample, *sample.further)
    return [_Reply(sample, n, d.completion, d.verdict, d.unscored_reason) for n, d in enumerate(drawn)]
