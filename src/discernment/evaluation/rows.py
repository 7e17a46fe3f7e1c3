"""Rows of an evaluation: what is asked of a policy, what came of it, and the samples that are made of both."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from discernment.errors import DataError
from discernment.evaluation.sample import Draw, Sample
from discernment.files import content_hash
from discernment.judges import Judge, Judgement
from discernment.judges.verdict import UNENDED, Verdict, judge_in_turn
from discernment.policies.policy import Completion
from discernment.prompts import Asked, Prompt, PromptSet
from discernment.prompts.conversation import plainly, text_of

Tell = Callable[[str, int, int], None]
"""Hears what is being done, how many are done, and how many there are."""


class Row(NamedTuple):
    """One prompt of a benchmark.

    Attributes:
        key: Under which what is known of it is kept.
        benchmark: The benchmark's name.
        prompt: The prompt.
        asked: What the policy is asked: the prompt, or the end of its text that fits.
        length: How many tokens that is, in its template.
        left_out: Why it is not asked.
    """

    key: str
    benchmark: str
    prompt: Prompt
    asked: Asked
    length: int = 0
    left_out: str | None = None


class Found(NamedTuple):
    """What is known of the rows before a judge is asked.

    Attributes:
        rows: The rows, those that are not asked with the reason.
        replies: Replies by key.
        rejections: Rejection probabilities by key, or why there is none.
        tokens: Tokens read and generated.
        notes: Facts for the record.
        no_rejection: Why there is no rejection probability, where one was asked for.
    """

    rows: Sequence[Row]
    replies: Mapping[str, Mapping[str, Any]]
    rejections: Mapping[str, Mapping[str, Any]]
    tokens: int
    notes: dict[str, Any]
    no_rejection: str | None = None


def rows_of(benchmarks: Sequence[PromptSet]) -> list[Row]:
    """A row for each prompt of all benchmarks.

    Raises:
        DataError: If two benchmarks have the same name.
    """
    for name, times in Counter(benchmark.provenance.name for benchmark in benchmarks).items():
        if times > 1:
            raise DataError(f"{times} benchmarks are called {name!r}; give each a name of its own.")
    # The same prompt may stand in two benchmarks; the key keeps them apart and changes when the text does.
    named = [(benchmark.provenance.name, prompt) for benchmark in benchmarks for prompt in benchmark]
    return [Row(content_hash([name, p.id, plainly(p.asked)])[:16], name, p, p.asked) for name, p in named]


def samples_of(found: Found, judge: Judge, tell: Tell) -> list[Sample]:
    """Judge the replies, and put together what is known of every row."""
    exchanges = [
        (text_of(row.asked), draw["completion"])
        for row in found.rows
        if row.left_out is None
        for draw in draws_of(found.replies[row.key])
        if "unscored" not in draw
    ]
    judged = iter(_judge(judge, exchanges, tell))
    samples = []
    for row in found.rows:
        if row.left_out is None:
            reply, rejection = found.replies[row.key], found.rejections.get(row.key, {})
            judgements = [
                Judgement(Verdict.UNSCORED, draw["unscored"]) if "unscored" in draw else next(judged)
                for draw in draws_of(reply)
            ]
            samples.append(_sample(row, reply, judgements, rejection, found.no_rejection))
        else:
            none = {"completion": "", "finished": True}  # nothing was cut at the cap
            samples.append(_sample(row, none, [Judgement(Verdict.UNSCORED, row.left_out)], {}))
    return samples


def kept_reply(completion: Completion) -> dict[str, Any]:
    """What is kept of a reply."""
    thought = {"thought": completion.thought} if completion.thought else {}
    return {
        "completion": completion.text,
        "finished": completion.finished,
        "tokens": completion.tokens,
        **thought,
    }


def draws_of(reply: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All replies to a prompt: the first, and those behind it."""
    return [reply, *reply.get("further", [])]


def _sample(
    row: Row,
    reply: Mapping[str, Any],
    judgements: Sequence[Judgement],
    rejection: Mapping[str, Any],
    no_rejection: str | None = None,
) -> Sample:
    first, *further = [
        {
            "completion": draw["completion"],
            "finished": draw["finished"],
            "verdict": judgement.verdict,
            "unscored_reason": (
                f"{judgement.reason} within {draw['tokens']} tokens"
                if judgement.reason == UNENDED and draw["tokens"]
                else judgement.reason
            ),
        }
        for draw, judgement in zip(draws_of(reply), judgements, strict=True)
    ]
    return Sample(
        prompt_id=row.prompt.id,
        benchmark=row.benchmark,
        label=row.prompt.label,
        category=row.prompt.category,
        prompt=row.prompt.text,
        system=row.prompt.system,
        earlier=row.prompt.earlier,
        partner=row.prompt.partner,
        frame=row.prompt.frame,
        cut=None if row.asked == row.prompt.asked else text_of(row.asked),
        **first,
        rejection_probability=rejection.get("rejection_probability"),
        no_rejection=rejection.get("why", no_rejection),
        further=tuple(Draw(**draw) for draw in further),
    )


def _judge(judge: Judge, exchanges: Sequence[tuple[str, str]], tell: Tell) -> list[Judgement]:
    tell("judgements", 0, len(exchanges))
    return judge_in_turn(judge, exchanges, partial(tell, "judgements"))
