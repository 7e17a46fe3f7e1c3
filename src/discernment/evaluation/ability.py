"""What is left of a policy's general ability, offline: divergence from its base model and perplexity on replies.

Both are teacher-forced: at each token of a given reply, the model's distribution of the next token after the prompt
and all reply tokens before it. The divergence KL(base || policy) says how far a method moved the model where it
should not have moved it (it weighs what the base model would say); perplexity says how surprised a model is by the
reply itself. Neither needs a judge, and neither says whether an answer is right: that is what `harness` is for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from discernment.errors import DataError, ModelError
from discernment.evaluation.results import Ability
from discernment.models.logits import why_not_finite
from discernment.policies.context import beginnings_of, check_context
from discernment.policies.policy import Policy
from discernment.prompts import Asked, Prompt
from discernment.statistics.intervals import FEWEST_CLUSTERS, Interval, paired_bootstrap

ANY_NATS = Interval(-math.inf, math.inf)
LOGITS_AT_ONCE = 2**26
"""Logits of one model that are held at once (256 MiB in float32): a vocabulary may have 256,000 entries."""


class ReplyScore(NamedTuple):
    """Two models on one reply of T tokens.

    Attributes:
        kl: KL(base || policy) at each token in nats, shape (T,).
        surprise: Negative log-likelihood of each token under the policy, shape (T,).
        surprise_base: The same under the base model, shape (T,).
    """

    kl: npt.NDArray[np.float64]
    surprise: npt.NDArray[np.float64]
    surprise_base: npt.NDArray[np.float64]


def measure_ability(
    policy: Policy,
    base: Policy,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Ability:
    """Measure divergence and perplexity on the replies that come with `prompts`.

    Args:
        policy: The policy.
        base: The model that it was made from.
        prompts: Benign prompts; those without a `response` are left out.
        batch_size: Most prompts a forward pass.
        seed: Fixes the resamples of the bootstrap.
        progress: Called with the number of prompts done after each batch.

    Raises:
        DataError: If no prompt has a response, or one does not fit the model's positions with it.
        ModelError: As `score_replies`.
    """
    answered = [(p, p.response) for p in prompts if p.response]
    if not answered:
        raise DataError("None of the prompts comes with a response; ability is measured on responses.")
    scores = score_replies(
        policy, base, [(p.asked, reply) for p, reply in answered], batch_size=batch_size, progress=progress
    )
    frames = [str((p.source, p.frame) if p.frame else (p.source, p.id, p.whole)) for p, _ in answered]
    clusters = np.unique(frames, return_inverse=True)[1]
    token_clusters = np.repeat(clusters, [len(s.kl) for s in scores])
    by_prompt = np.array([s.kl.mean() for s in scores])
    surprise = np.concatenate([s.surprise for s in scores])
    surprise_base = np.concatenate([s.surprise_base for s in scores])
    kl = _interval(by_prompt, np.zeros_like(by_prompt), clusters, seed)
    # With one entry a token and whole prompts drawn, a resample's mean is again over all of its tokens.
    nats = _interval(surprise, np.zeros_like(surprise), token_clusters, seed)
    difference = _interval(surprise, surprise_base, token_clusters, seed)
    return Ability(
        policy=policy.name,
        base=base.name,
        kl=float(by_prompt.mean()),
        kl_low=kl.low if kl else None,
        kl_high=kl.high if kl else None,
        perplexity=math.exp(surprise.mean()),
        perplexity_low=math.exp(nats.low) if nats else None,
        perplexity_high=math.exp(nats.high) if nats else None,
        perplexity_base=math.exp(surprise_base.mean()),
        ratio=math.exp((surprise - surprise_base).mean()),
        ratio_low=math.exp(difference.low) if difference else None,
        ratio_high=math.exp(difference.high) if difference else None,
        prompts=len(scores),
        tokens=len(surprise),
    )


@torch.inference_mode()
def score_replies(
    policy: Policy,
    base: Policy,
    exchanges: Sequence[tuple[Asked, str]],
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[ReplyScore]:
    """Compare two models at every token of given replies.

    Args:
        policy: The policy.
        base: The model that it was made from.
        exchanges: Pairs (prompt without template, reply).
        batch_size: Most prompts a forward pass; fewer where replies are long and the vocabulary is large.
        progress: Called with the number of prompts done after each batch.

    Returns:
        One score a pair, in order.

    Raises:
        DataError: If a prompt and its reply do not fit the model's positions.
        ModelError: If the two turn the same text into different tokens, or give logits that are not finite.
    """
    tokens = [
        _tokens(policy, *exchange) for exchange in exchanges
    ]  # of the chat format, whatever a rule reads
    if tokens != [_tokens(base, *exchange) for exchange in exchanges]:
        raise ModelError(
            f"{policy.name} and {base.name} turn the same exchange into different tokens; compare a policy with the "
            "model that it was made from, under the same chat format."
        )
    for one in (policy, base):  # which read the end of the turn, too
        asked = [prompt for prompt, _ in exchanges]
        check_context(one, one.encode(asked), beginnings_of(asked), [len(reply) + 1 for _, reply in tokens])
    scores: dict[int, ReplyScore] = {}
    vocabulary = policy.model.config.get_text_config().vocab_size
    for rows in _batches([len(reply) for _, reply in tokens], batch_size, vocabulary):
        texts, replies = [exchanges[r][0] for r in rows], [tokens[r][1] for r in rows]
        both = (one.reply_logits(one.encode(texts), replies) for one in (policy, base))
        for row, ours, theirs in zip(rows, *both, strict=True):
            scores[row] = _score(ours, theirs, tokens[row][1], policy, base)
        if progress is not None:
            progress(len(rows))
    return [scores[n] for n in range(len(exchanges))]


Tokens = tuple[list[int], list[int]]
"""Token ids of a rendered prompt, and of a reply with the end of its turn."""


def _tokens(policy: Policy, prompt: Asked, reply: str) -> Tokens:
    return policy.chat.encode(prompt), policy.chat.encode_reply(prompt, reply)


def _batches(lengths: Sequence[int], batch_size: int, vocabulary: int) -> Iterator[list[int]]:
    """Index lists, longest reply first, each within `batch_size` and `LOGITS_AT_ONCE` unless it holds one reply."""
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    while order:
        fit = LOGITS_AT_ONCE // (vocabulary * (lengths[order[0]] + 1))
        size = max(1, min(batch_size, fit))
        yield order[:size]
        order = order[size:]


def _score(ours: Tensor, theirs: Tensor, reply: list[int], policy: Policy, base: Policy) -> ReplyScore:
    if ours.shape != theirs.shape:
        raise ModelError(
            f"{policy.name} and {base.name} have vocabularies of different size ({ours.shape[-1]} and "
            f"{theirs.shape[-1]}); compare a policy with the model that it was made from."
        )
    targets = torch.tensor(reply, device=ours.device)[:, None]
    log_p, log_q = theirs.float().log_softmax(-1).to(ours.device), ours.float().log_softmax(-1)
    for log, read in ((log_q, policy), (log_p, base)):
        if log.isnan().any():
            raise ModelError(f"{read.name} gives logits that are not finite; {why_not_finite(read.model)}.")
    # target * (log target - input), with 0 * log 0 = 0; rounding alone can push a sum of it below 0
    kl = (
        torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        .nan_to_num(0.0, posinf=math.inf)
        .sum(-1)
    )
    return ReplyScore(
        kl.clamp(min=0).double().cpu().numpy(),
        -log_q.gather(-1, targets)[:, 0].double().cpu().numpy(),
        -log_p.gather(-1, targets)[:, 0].double().cpu().numpy(),
    )


def _interval(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], clusters: npt.NDArray[np.int64], seed: int
) -> Interval | None:
    if len(np.unique(clusters)) < FEWEST_CLUSTERS:
        return None
    return paired_bootstrap(a, b, clusters=clusters, seed=seed, limits=ANY_NATS)
