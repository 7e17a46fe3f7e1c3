"""Logs as inspect_ai writes them, so that `inspect view` shows what each method replied and how it was judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discernment.errors import RecipeError
from discernment.evaluation.groups import right_verdict
from discernment.evaluation.sample import Draw, Sample
from discernment.files import content_hash, encodable
from discernment.judges.verdict import Verdict
from discernment.prompts.conversation import plainly
from discernment.reporting.exports.gathered import Gathered, Replies

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample, EvalScore

UNFIT = re.compile(r"[^\w.+ -]")
"""What does not belong into the name of a file."""
ID_LENGTH = 22
"""Of inspect_ai's own ids."""


def check_inspect() -> None:
    """Make sure that inspect_ai is there.

    Raises:
        RecipeError: If it is not.
    """
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"Logs for `inspect view` need `pip install 'discernment[inspect]'` ({error})."
        ) from None


def write_inspect_logs(gathered: Gathered, folder: Path) -> list[Path]:
    """Write a log for each method, and for each attack on it, through inspect_ai's own writer.

    A reply is a sample; where several are drawn to a prompt, they are its epochs. A sample's scores are `verdict` and `right`
    (C where a toxic prompt was refused or another one answered, I otherwise); a reply without a verdict has none, and its
    metadata say why. The log's metrics are the rates and AUROCs of `results.json`. Content is marked as untrusted, so that the
    viewer shows it as plain text.

    Args:
        gathered: What is written.
        folder: Where to; it is made.

    Returns:
        The files.

    Raises:
        RecipeError: If inspect_ai is not installed.
    """
    check_inspect()
    from inspect_ai.log import write_eval_log

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for replies in gathered.replies:
        plain = UNFIT.sub("-", replies.name).strip(". ") or "method"
        taken = sum(path.stem == plain or path.stem.startswith(f"{plain} (") for path in paths)
        paths.append(folder / f"{plain}{f' ({taken + 1})' if taken else ''}.eval")
        write_eval_log(make_log(gathered, replies), str(paths[-1]))
    return paths


def make_log(gathered: Gathered, replies: Replies) -> EvalLog:
    """The log of one method, as it is or under one attack."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats
    from inspect_ai.viewer import ViewerConfig

    model = gathered.base_model or replies.method
    samples = [s for sample in replies.samples for s in _samples(sample, model, replies.attack)]
    ids = list(dict.fromkeys(sample.id for sample in samples))
    which = [gathered.name, gathered.created, replies.method, replies.attack]
    known = {
        "method": replies.method,
        "attack": replies.attack,
        "recipe": gathered.name,
        "seed": gathered.seed,
        "discernment": gathered.version,
        "judge": gathered.judge,
    }
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=_id("eval", *which),
            run_id=_id("run", *which[:2]),
            task_id=_id("task", *which),
            created=gathered.created,
            task=f"{gathered.name}: {replies.name}",
            dataset=EvalDataset(
                name=", ".join(dict.fromkeys(sample.benchmark for sample in replies.samples)),
                samples=len(ids),
                sample_ids=ids,
                shuffled=False,
            ),
            model=model,
            config=EvalConfig(epochs=max((sample.epoch for sample in samples), default=1)),
            packages=gathered.packages,
            metadata={key: value for key, value in known.items() if value is not None},
            viewer=ViewerConfig(trust_content=False),
        ),
        results=_results(replies, len(samples)),
        stats=EvalStats(started_at=gathered.created, completed_at=gathered.finished),
        samples=samples,
    )


def _id(*parts: str | None) -> str:
    """The same for what is the same, so that an export can be compared with another."""
    return content_hash(parts)[:ID_LENGTH]


def _samples(sample: Sample, model: str, attack: str | None) -> Iterator[EvalSample]:
    """The replies to one prompt."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    asked = plainly(sample.asked)
    turns = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    messages = [kinds[turn["role"]](content=encodable(turn["content"])) for turn in turns]
    for epoch, reply in enumerate(sample.replies, start=1):
        stop = "stop" if reply.finished else "max_tokens"
        completion = encodable(reply.completion)
        yield EvalSample(
            id=f"{sample.benchmark}/{sample.prompt_id}",
            epoch=epoch,
            input=messages if isinstance(asked, list) else messages[0].content,
            target="refuse" if sample.label.should_refuse else "answer",
            messages=[*messages, ChatMessageAssistant(content=completion, source="generate", model=model)],
            output=ModelOutput.from_content(model, completion, stop_reason=stop),
            scores=_scores(sample, reply),
            metadata=_metadata(sample, reply, attack),
        )


def _scores(sample: Sample, reply: Sample | Draw) -> dict[str, Any]:
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    if reply.verdict is Verdict.UNSCORED:
        return {}
    right = reply.verdict is right_verdict(sample.label)
    return {
        "verdict": Score(value=reply.verdict.value),
        "right": Score(value=CORRECT if right else INCORRECT, answer=reply.verdict.value),
    }


def _metadata(sample: Sample, reply: Sample | Draw, attack: str | None) -> dict[str, Any]:
    known = {
        "benchmark": sample.benchmark,
        "label": sample.label.value,
        "category": sample.category,
        "verdict": reply.verdict.value,
        "unscored_reason": reply.unscored_reason,
        "rejection_probability": sample.rejection_probability,
        "finished": reply.finished,
        "attack": attack,
        "partner": sample.partner,
        "frame": sample.frame,
    }
    return {key: encodable(v) if isinstance(v, str) else v for key, v in known.items() if v is not None}


def _results(replies: Replies, total: int) -> EvalResults:
    """The counts and rates as `results.json` has them."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    def score(name: str, found: list[EvalMetric], **more: Any) -> EvalScore:
        return EvalScore(name=name, scorer=name, metrics={metric.name: metric for metric in found}, **more)

    rates = [
        EvalMetric(
            name=f"{rate.benchmark}, {rate.label.value}",
            group=rate.metric,
            value=rate.value,
            metadata=rate.model_dump(mode="json", exclude={"method", "value"}),
        )
        for rate in replies.scores
        if rate.value is not None
    ]
    aurocs = [
        EvalMetric(
            name=f"{ranking.harmless}, {ranking.harmless_label.value}, against {ranking.toxic}, toxic",
            group="auroc",
            value=ranking.value,
            metadata=ranking.model_dump(mode="json", exclude={"method", "value"}),
        )
        for ranking in replies.rankings
    ]
    verdicts = Counter(reply.verdict for s in replies.samples for reply in s.replies)
    counts = [EvalMetric(name=verdict.value, value=verdicts[verdict]) for verdict in Verdict]
    scored = {
        "scored_samples": total - verdicts[Verdict.UNSCORED],
        "unscored_samples": verdicts[Verdict.UNSCORED],
    }
    scores = [score("right", rates, **scored), score("verdict", counts, **scored)]
    if aurocs:
        scores.append(score("rejection_probability", aurocs))
    return EvalResults(total_samples=total, completed_samples=total, scores=scores)
