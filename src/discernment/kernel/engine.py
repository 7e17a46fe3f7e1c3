"""The gradient kernel of prompts: K(x', x) = J(x') J(x)^T at the first generated token (Lu et al. 2026).

J(x) = dz/dtheta is the Jacobian of the logits z with respect to the parameters: the kernel says how far a training
step on x moves the logits of x' (the empirical neural tangent kernel).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from discernment.errors import DataError, ModelError
from discernment.kernel.checks import check_weights
from discernment.kernel.instrument import measuring
from discernment.kernel.job import KernelJob
from discernment.kernel.kernel import Floats, Kernel, KernelOptions, Tap
from discernment.policies.context import beginnings_of, check_context
from discernment.policies.policy import Policy
from discernment.prompts import Asked


def gradient_kernel(
    policy: Policy,
    prompts: Sequence[Asked],
    options: KernelOptions | None = None,
    *,
    replies: Sequence[str] | None = None,
    taps: Sequence[int] = (),
    resume: Path | None = None,
    keep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Kernel:
    """Measure the gradient kernel of all pairs of prompts.

    The result equals autograd's up to rounding, for padded and unpadded prompts, alone or in a batch. The first
    generated token stands behind what the template writes before every reply (`ChatFormat.lead`).

    Args:
        policy: The policy; the weights that are measured must be float32 or float64.
        prompts: Texts without template, at least two.
        options: Which kernel.
        replies: One reply a prompt: the kernel of its tokens, teacher-forced, instead of the first generated one.
            With `rows: own` each position has one row, the reply's own token; with `likelihood` the whole reply has
            one; otherwise every position has the rows that `options` asks for.
        taps: Layers whose states and tail Jacobians are kept, counted from 1.
        resume: A file for the state of an unfinished kernel, from which the same call goes on.
        keep: Leave that file at the end, so that the same call has little left to do.
        progress: Called with the layers done and their number.

    Raises:
        DataError: If there are fewer than two prompts, or a prompt is longer than the model's context.
        ModelError: If the model has parameters that the kernel cannot cover, none of those asked for, or quantised ones
            among them, they are less than float32, or no two prompts give finite values.
    """
    options = options or KernelOptions()
    _check(policy, prompts, options, replies)
    sequences, answers = _encode(policy, prompts, replies)
    with measuring(policy.model), policy.acting():
        order = sorted(range(len(prompts)), key=lambda p: (-len(sequences[p]), p))
        job = KernelJob(policy, options, [sequences[p] for p in order], [answers[p] for p in order], taps)
        unscored = {order[p]: "the model's values for it are not finite" for p in job.backward.not_finite()}
        if unscored:
            _check_left(policy, len(prompts), unscored)
            order = [p for p in order if p not in unscored]
            job = KernelJob(policy, options, [sequences[p] for p in order], [answers[p] for p in order], taps)
        job.run(resume, progress, keep=keep)
        unscored |= {order[p]: "its gradients in the model are not finite" for p in job.not_finite()}
        _check_left(policy, len(prompts), unscored)
        found = job.result()
    return _in_order(found, order, len(prompts), dict(sorted(unscored.items())))


def _check(
    policy: Policy, prompts: Sequence[Asked], options: KernelOptions, replies: Sequence[str] | None
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
    check_weights(policy, options)


def _check_left(policy: Policy, prompts: int, unscored: dict[int, str]) -> None:
    if prompts - len(unscored) < 2:
        raise ModelError(
            f"{policy.name} gives values that are not finite for {len(unscored)} of {prompts} prompts, so there is no "
            "pair to measure; the model has diverged or overflows."
        )


def _encode(
    policy: Policy, prompts: Sequence[Asked], replies: Sequence[str] | None
) -> tuple[list[list[int]], list[list[int]]]:
    """The sequences to run, and the replies' tokens (of which the last one is only predicted)."""
    encoded = policy.encode(prompts)
    policy.check_one_model("The gradient kernel", encoded)
    answers: list[list[int]] = [[] for _ in prompts]
    read = [policy.chat.lead for _ in prompts]
    if replies is not None:
        answers = [policy.chat.encode_reply(p, reply) for p, reply in zip(prompts, replies, strict=True)]
        read = [answer[:-1] for answer in answers]
    check_context(policy, encoded, beginnings_of(prompts), [len(behind) + 1 for behind in read])
    return [[*s, *behind] for s, behind in zip(encoded, read, strict=True)], answers


def _in_order(found: Kernel, order: Sequence[int], count: int, unscored: dict[int, str]) -> Kernel:
    """The kernel with the prompts in the caller's order, and NaN for those that are unscored."""
    kept = [place for place, prompt in enumerate(order) if prompt not in unscored]
    places, rows = torch.tensor([order[place] for place in kept]), torch.tensor(kept)

    def spread(values: Tensor, *axes: int) -> Tensor:
        for axis in axes:
            whole = values.new_full((*values.shape[:axis], count, *values.shape[axis + 1 :]), torch.nan)
            values = whole.index_copy(axis, places, values.index_select(axis, rows))
        return values

    def spread_floats(values: Floats, *axes: int) -> Floats:
        return np.asarray(spread(torch.from_numpy(values), *axes))

    by_prompt = {order[place]: found.tokens[place] for place in kept} if found.tokens is not None else {}
    return replace(
        found,
        norms=spread_floats(found.norms, 0, 1),
        errors=None if found.errors is None else spread_floats(found.errors, 0, 1),
        part_norms=spread_floats(found.part_norms, 1, 2),
        shares=spread_floats(found.shares, 1, 2),
        traces=spread_floats(found.traces, 1),
        tokens=None if found.tokens is None else [by_prompt.get(p, []) for p in range(count)],
        unscored=unscored,
        taps={n: Tap(*(spread(values, 0) for values in tap)) for n, tap in found.taps.items()},
        blocks=None if found.blocks is None else spread(found.blocks, 0, 2),
    )
