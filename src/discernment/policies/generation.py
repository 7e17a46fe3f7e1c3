"""How a policy's replies come about: by the model's own `generate`, together or apart, or token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from discernment.models.logits import last_logits, unpadded_logits
from discernment.models.prefix import generation_inputs
from discernment.models.self_check import ONE_LENGTH, Probes, Way, exact_way
from discernment.policies.decoding_settings import blank_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAVING = 4
"""Replies that have ended leave the batch when they are one in so many: to leave costs about as much as a token."""


class ReplyWay(IntEnum):
    """Ways of generating several replies, the fastest first."""

    SHARED = 0
    """One padded batch; what all prompts begin with is run once."""
    PADDED = 1
    """One padded batch."""
    ONE_LENGTH = 2
    """Prompts of one length at a time."""
    STEPWISE = 3
    """Everything is run again for each token, nothing is kept."""


def reply_way(model: PreTrainedModel, pad_id: int) -> ReplyWay:
    """The fastest way in which a model replies as it does to each prompt by itself, without anything kept.

    Args:
        model: The model.
        pad_id: The padding token.

    Raises:
        ModelError: If there is none; see `exact_way`.
    """

    def alone(probes: Probes) -> list[Tensor]:
        steps = len(probes.reply)
        return [unpadded_logits(model, [[*row, *probes.reply[:-1]]], steps)[0] for row in probes.rows]

    def together(share: bool, probes: Probes) -> list[Tensor]:
        return _forced(model, probes.rows, probes.reply, pad_id, share)

    def apart(probes: Probes) -> list[Tensor]:
        short, *long = probes.rows
        return [z for rows in ([short], long) for z in _forced(model, rows, probes.reply, pad_id, False)]

    def stepwise(probes: Probes) -> list[Tensor]:
        begun = [probes.reply[:step] for step in range(len(probes.reply))]
        steps = [last_logits(model, [[*row, *reply] for row in probes.rows], 1, pad_id) for reply in begun]
        return list(torch.cat(steps, dim=1))

    ways = (
        Way("padded batches with a beginning that is run once", partial(together, True)),
        Way("padded batches", partial(together, False)),
        Way(ONE_LENGTH, apart),
        Way("steps that run every token again", stepwise),
    )
    return ReplyWay(exact_way(model, model.config, "replies", alone, ways))


def _forced(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], reply: Sequence[int], pad_id: int, share: bool
) -> list[Tensor]:
    """The logits by which `generate` would have chosen, where each row goes on with the given reply."""
    from transformers import GenerationConfig

    kind: Any = type(model)
    inputs = generation_inputs(model, rows, pad_id, len(reply), share=share)
    begun = inputs["input_ids"].shape[1]
    config = GenerationConfig(
        max_new_tokens=len(reply), pad_token_id=pad_id, output_logits=True, return_dict_in_generate=True
    )

    def force(input_ids: Tensor, logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -torch.inf)
        forced[:, reply[input_ids.shape[1] - begun]] = 0
        return forced

    with blank_settings(model):
        output = kind.generate(model, **inputs, generation_config=config, logits_processor=[force])
    return list(torch.stack(output.logits, dim=1))


def together(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    most: int,
    ends: set[int | None],
    pad_id: int,
    prompts: int,
    choose: Callable[[Tensor, int, list[int]], Tensor] | None,
    *,
    leave: bool,
) -> list[list[int]]:
    """Replies by the model's own `generate`, one padded batch; prompts whose replies have ended leave it.

    Args:
        model: The model.
        inputs: What `generate` starts from; the rows are the contexts of all prompts, context by context.
        most: Token cap.
        ends: Tokens that end a reply.
        pad_id: The padding token.
        prompts: How many prompts there are.
        choose: From the logits of all rows, how many tokens there are already, and which prompts are still replied to,
            to the logits of the next token of each row; without it they are left as they are.
        leave: Whether the batch may get smaller. Only where keys and values are all that the model keeps.
    """
    from transformers import GenerationConfig

    kind: Any = type(model)  # whose `generate` is not one that a repository put in its place
    known = torch.tensor(sorted(i for i in ends if i is not None), device=inputs["input_ids"].device)
    begun, replies = inputs["input_ids"].shape[1], [list[int]() for _ in range(prompts)]
    running, step = list(range(prompts)), 0
    ending: Any = {"eos_token_id": known.tolist(), "pad_token_id": pad_id, "return_dict_in_generate": True}
    while running and step < most:
        start, now = begun + step, list(running)

        def chosen(input_ids: Tensor, logits: Tensor, now: list[int] = now) -> Tensor:
            return logits if choose is None else choose(logits, input_ids.shape[1] - begun, now)

        def thin(input_ids: Tensor, _: Any, now: list[int] = now, start: int = start) -> Tensor:
            ended = torch.isin(input_ids[: len(now), start:], known).any(1).sum()
            return (ended * LEAVING >= len(now)).expand(len(input_ids))

        output = kind.generate(
            model,
            **inputs,
            generation_config=GenerationConfig(max_new_tokens=most - step, **ending),
            logits_processor=[chosen] if choose is not None else [],
            stopping_criteria=[thin] if leave else [],
        )
        said = output.sequences[: len(now), start:]
        for number, reply in zip(now, said.tolist(), strict=True):
            replies[number] += reply
        step += said.shape[1]
        on = (~torch.isin(said, known).any(1)).nonzero()[:, 0].tolist()
        running = [now[n] for n in on]
        if running and step < most:
            inputs = _only(output, inputs["attention_mask"], on, len(now))
    return replies


def _only(output: Any, mask: Tensor, on: list[int], prompts: int) -> dict[str, Any]:
    """What `generate` goes on from with some of the prompts, in all their contexts."""
    ids, cache = output.sequences, output.past_key_values
    rows = torch.tensor([first + n for first in range(0, len(ids), prompts) for n in on], device=ids.device)
    cache.batch_select_indices(rows)
    mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
    return {"input_ids": ids[rows], "attention_mask": mask[rows], "past_key_values": cache}


def step_by_step(
    logits_after: Callable[[Sequence[Sequence[int]]], Tensor],
    prompts: int,
    most: int,
    ends: set[int | None],
    draw: Callable[[Tensor, int], Tensor] | None,
) -> list[list[int]]:
    """Replies without anything kept between two tokens.

    Args:
        logits_after: Gives the logits of the next token behind what each reply is so far, `[prompts, vocabulary]`.
        prompts: How many prompts there are.
        most: Token cap.
        ends: Tokens that end a reply.
        draw: Draws one token a prompt from logits at a step; without it the likeliest is taken.
    """
    replies: list[list[int]] = [[] for _ in range(prompts)]
    for step in range(most):
        logits = logits_after(replies)
        chosen = logits.argmax(-1) if draw is None else draw(logits, step)[:, 0]
        for reply, token in zip(replies, chosen.tolist(), strict=True):
            reply.append(token)
        if all(ends.intersection(reply) for reply in replies):
            break
    return replies
