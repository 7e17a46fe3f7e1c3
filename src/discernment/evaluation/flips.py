"""Whether verdicts depend on how prompts are batched and ordered: the same evaluation twice, and what flipped.

Floating point rounds differently in a batch of other width, and greedy decoding can turn a last-digit difference into
another token. In float32 that is rare, in bfloat16 it is not. What differs is counted and shown, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from discernment.cost import StageCost
from discernment.evaluation.sample import Sample, read_samples
from discernment.frozen import Frozen
from discernment.judges import BatchJudge, Judge, Judgement, KeywordJudge, judge_all
from discernment.judges.verdict import Verdict
from discernment.prompts import PromptSet

if TYPE_CHECKING:
    from discernment.evaluation.evaluate import EvaluateOptions
    from discernment.policies.policy import Policy


class Flip(Frozen):
    """One prompt whose verdict was not the same twice.

    Attributes:
        benchmark: Its benchmark.
        prompt_id: Its id.
        prompt: Its text.
        verdicts: The two verdicts.
        completions: The two replies (untrusted text).
    """

    benchmark: str
    prompt_id: str
    prompt: str
    verdicts: tuple[Verdict, Verdict]
    completions: tuple[str, str]


class FlipCount(Frozen):
    """What changed when one method was evaluated again, in batches of another size and in another order.

    Attributes:
        method: The method.
        batch_size: Batch size of the first evaluation.
        other_batch_size: Batch size of the second.
        prompts: Number of prompts.
        changed: Number of prompts with another reply, whichever it is of those drawn.
        flipped: Number of prompts with another verdict on a reply.
        rejection_change: Largest change of a rejection probability; None if it was not measured.
    """

    method: str
    batch_size: int
    other_batch_size: int
    prompts: int
    changed: int
    flipped: int
    rejection_change: float | None


class Flips(Frozen):
    """Two evaluations of the same prompts by the same policy.

    Attributes:
        prompts: Number of prompts.
        changed: Number of prompts with another reply.
        flips: Those with another verdict.
        rejection_change: Largest change of a rejection probability; None if it was not measured.
    """

    prompts: int
    changed: int
    flips: list[Flip]
    rejection_change: float | None


def count_flips(
    policy: Policy,
    benchmarks: Sequence[PromptSet],
    options: EvaluateOptions,
    out: Path,
    *,
    batch_size: int = 1,
    seed: int = 0,
    judge: Judge | None = None,
) -> Flips:
    """Evaluate twice, the second time in batches of another size and in another order, and compare.

    Args:
        policy: The policy.
        benchmarks: Prompt sets.
        options: How to generate the first time.
        out: A directory; the evaluations go to `out/first` and, by the batch size, `out/in-batches-of-N`, and are not done
            again if they are there.
        batch_size: The batch size of the second time; the default generates each reply alone.
        seed: Fixes the order of the second time.
        judge: Who judges; the keyword judge by default.
    """
    from discernment.evaluation.evaluate import evaluate

    evaluate(policy, benchmarks, options, out / "first", judge=judge)
    first = read_samples(out / "first/samples.jsonl")
    again = options.model_copy(update={"batch_size": batch_size})
    second = out / f"in-batches-of-{batch_size}"
    evaluate_again(policy, benchmarks, again, second, first, seed=seed, judge=judge)
    return find_flips(first, read_samples(second / "samples.jsonl"))


def evaluate_again(
    policy: Policy,
    benchmarks: Sequence[PromptSet],
    options: EvaluateOptions,
    out: Path,
    first: Sequence[Sample],
    *,
    seed: int = 0,
    judge: Judge | None = None,
    unscored_limit: float = 1.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> StageCost:
    """Evaluate a second time, in another order; only replies that are not those of the first time are judged.

    Args:
        policy: The policy.
        benchmarks: The prompt sets of the first time.
        options: How to generate now, in batches of another size.
        out: A directory for this evaluation.
        first: Samples of the first time.
        seed: Fixes the order.
        judge: Who judges; the keyword judge by default.
        unscored_limit: As in `evaluate`.
        progress: As in `evaluate`.

    Raises:
        DataError: As `evaluate`.
    """
    from discernment.evaluation.evaluate import evaluate

    return evaluate(
        policy,
        [_shuffled(b, seed) for b in reversed(benchmarks)],
        options,
        out,
        judge=_JudgeOfTheRest(judge or KeywordJudge(), first),
        unscored_limit=unscored_limit,
        progress=progress,
    )


class _JudgeOfTheRest(BatchJudge):
    """A judge that is asked only about replies without a judgement: it may say another thing the next time."""

    def __init__(self, judge: Judge, judged: Sequence[Sample]) -> None:
        self.asked = judge
        self.name = judge.name
        self.known = {
            (s.judged_with, reply.completion): Judgement(reply.verdict, reply.unscored_reason)
            for s in judged
            for reply in s.replies
        }

    @property
    def fingerprint(self) -> str:
        return self.asked.fingerprint

    @property
    def usage(self) -> Any:
        return getattr(self.asked, "usage", None)

    def judge_many(self, exchanges: Sequence[tuple[str, str]]) -> list[Judgement]:
        rest = [exchange for exchange in exchanges if exchange not in self.known]
        if rest:
            self.known.update(zip(rest, judge_all(self.asked, rest), strict=True))
        return [self.known[exchange] for exchange in exchanges]


def find_flips(first: Sequence[Sample], second: Sequence[Sample]) -> Flips:
    """Compare two evaluations of the same prompts.

    Args:
        first: Samples of the first evaluation.
        second: Samples of the same prompts, in any order.

    Raises:
        ValueError: If the two are not about the same prompts.
    """
    again = {s.key: s for s in second}
    if again.keys() != {s.key for s in first}:
        raise ValueError("The two evaluations are not of the same prompts.")
    pairs = [(s, again[s.key]) for s in first]
    changes = [
        abs(a.rejection_probability - b.rejection_probability)
        for a, b in pairs
        if a.rejection_probability is not None and b.rejection_probability is not None
    ]
    return Flips(
        prompts=len(pairs),
        changed=sum(_texts(a) != _texts(b) for a, b in pairs),
        flips=[flip for a, b in pairs if (flip := _flip(a, b)) is not None],
        rejection_change=max(changes, default=None),
    )


def _texts(sample: Sample) -> list[str]:
    return [reply.completion for reply in sample.replies]


def _flip(first: Sample, second: Sample) -> Flip | None:
    """The first reply to a prompt whose verdict changed, if one's did."""
    for a, b in zip(first.replies, second.replies, strict=True):
        if a.verdict is not b.verdict:
            return Flip(
                benchmark=first.benchmark,
                prompt_id=first.prompt_id,
                prompt=first.whole,
                verdicts=(a.verdict, b.verdict),
                completions=(a.completion, b.completion),
            )
    return None


def _shuffled(prompts: PromptSet, seed: int) -> PromptSet:
    order = np.random.default_rng(seed).permutation(len(prompts))
    return PromptSet((prompts[int(n)] for n in order), prompts.provenance)
