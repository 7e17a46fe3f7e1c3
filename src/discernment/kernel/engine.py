"""The gradient kernel of prompts: K(x', x) = J(x') J(x)^T at the first generated token (Lu et al. 2026).

J(x) = dz/dtheta is the Jacobian of the logits z with respect to the parameters: the kernel says how far a training
step on x moves the logits of x' (the empirical neural tangent kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from discernment.errors import DataError, ModelError
from discernment.kernel.instrument import measuring
from discernment.kernel.job import KernelJob
from discernment.kernel.kernel import Floats, Kernel, KernelOptions, Tap
from discernment.policies.policy import Policy

__all__ = ["check_lengths", "gradient_kernel"]


def gradient_kernel(
    policy: Policy,
    prompts: Sequence[str],
    options: KernelOptions | None = None,
    *,
    replies: Sequence[str] | None = None,
    taps: Sequence[int] = (),
    resume: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Kernel:
    """Measure the gradient kernel of all pairs of prompts.

    The result equals autograd's up to rounding, for padded and unpadded prompts, alone or in a batch.

    Args:
        policy: The policy; its weights must be float32 or float64.
        prompts: Texts without template, at least two.
        options: Which kernel.
        replies: One reply a prompt: the kernel of its tokens, teacher-forced, instead of the first generated one.
            With `rows: own` each position has one row, the reply's own token; with `likelihood` the whole reply has
            one; otherwise every position has the rows that `options` asks for.
        taps: Layers whose states and tail Jacobians are kept, counted from 1.
        resume: A file for the state of an unfinished measurement, from which the same call goes on.
        progress: Called with the layers done and their number.

    Raises:
        DataError: If there are fewer than two prompts, or a prompt is longer than the model's context.
        ModelError: If the model has parameters that the kernel cannot cover, its weights are less than float32, or no
            two prompts give finite values.
    """
    options = options or KernelOptions()
    _check(policy, prompts, options, replies)
    sequences, answers = _encode(policy, prompts, replies)
    with measuring(policy.model):
        order = sorted(range(len(prompts)), key=lambda p: (-len(sequences[p]), p))
        unscored: dict[int, str] = {}
        job = KernelJob(policy, options, [sequences[p] for p in order], [answers[p] for p in order], taps)
        bad = {order[p] for p in job.backward.not_finite()}
        if bad:
            unscored = dict.fromkeys(sorted(bad), "the model's values for it are not finite")
            order = [p for p in order if p not in bad]
            if len(order) < 2:
                raise ModelError(
                    f"{policy.name} gives values that are not finite for {len(bad)} of {len(prompts)} prompts, so "
                    "there is no pair to measure; the model has diverged or overflows."
                )
            job = KernelJob(policy, options, [sequences[p] for p in order], [answers[p] for p in order], taps)
        job.run(resume, progress)
        found = job.result()
    return _in_order(found, order, len(prompts), unscored)


def check_lengths(policy: Policy, sequences: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Make sure that the policy can read every prompt.

    Args:
        policy: The policy.
        sequences: Token ids of each prompt.
        names: What to call each prompt in the message.

    Raises:
        DataError: If a prompt is longer than the model's context.
    """
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    for name, sequence in zip(names, sequences, strict=True):
        if context is not None and len(sequence) > context:
            raise DataError(
                f"The prompt {name} has {len(sequence)} tokens and {policy.name} can read {context}; shorten it or "
                "leave it out."
            )


def _check(
    policy: Policy, prompts: Sequence[str], options: KernelOptions, replies: Sequence[str] | None
) -> None:
    if len(prompts) < 2:
        raise DataError(f"A kernel is between prompts, and there is {len(prompts)}; give two or more.")
    if replies is not None and len(replies) != len(prompts):
        raise DataError(f"There are {len(replies)} replies for {len(prompts)} prompts; give one for each.")
    if replies is not None and options.rows == "exact":
        raise DataError("The exact kernel is that of the first token; use other `rows` with replies.")
    if replies is None and options.rows == "likelihood":
        raise DataError(
            "`rows: likelihood` is about the log-probability of replies; give a reply for each prompt."
        )
    dtype = next(policy.model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise ModelError(f"{policy.name} has {dtype} weights; load it with `dtype: float32` for the kernel.")


def _encode(
    policy: Policy, prompts: Sequence[str], replies: Sequence[str] | None
) -> tuple[list[list[int]], list[list[int]]]:
    """The sequences to run, and the replies' tokens (of which the last one is only predicted)."""
    sequences = policy.encode(prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    if replies is not None:
        answers = [policy.chat.encode_reply(reply) for reply in replies]
        sequences = [[*s, *a[:-1]] for s, a in zip(sequences, answers, strict=True)]
    check_lengths(policy, sequences, [repr(prompt[:60]) for prompt in prompts])
    return sequences, answers


def _in_order(found: Kernel, order: Sequence[int], count: int, unscored: dict[int, str]) -> Kernel:
    """The kernel with the prompts in the caller's order, and NaN for those that are unscored."""
    places = np.asarray(order)

    def of_pairs(values: Floats) -> Floats:
        spread = np.full((*values.shape[:-2], count, count), np.nan)
        spread[..., places[:, None], places[None, :]] = values
        return spread

    traces = np.full((len(found.traces), count), np.nan)
    traces[:, places] = found.traces
    tokens, blocks = found.tokens, found.blocks
    if tokens is not None:
        by_prompt = dict(zip(order, tokens, strict=True))
        tokens = [by_prompt.get(p, []) for p in range(count)]
    if blocks is not None:
        spread = torch.full((count, blocks.shape[1], count, blocks.shape[3]), torch.nan, dtype=blocks.dtype)
        spread[places[:, None], :, places[None, :]] = blocks.permute(0, 2, 1, 3)
        blocks = spread

    def of_prompts(values: Tensor) -> Tensor:
        spread = torch.full((count, *values.shape[1:]), torch.nan, dtype=values.dtype)
        spread[places] = values
        return spread

    return replace(
        found,
        norms=of_pairs(found.norms),
        errors=None if found.errors is None else of_pairs(found.errors),
        part_norms=of_pairs(found.part_norms),
        shares=of_pairs(found.shares),
        traces=traces,
        tokens=tokens,
        unscored=unscored,
        taps={layer: Tap(*map(of_prompts, tap)) for layer, tap in found.taps.items()},
        blocks=blocks,
    )
