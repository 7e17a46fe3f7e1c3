"""Whether a prompt and its reply fit the positions of a model: the one check of all that reads prompts or speaks."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from discernment.errors import DataError
from discernment.prompts.conversation import Asked, text_of, with_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from discernment.models.chat import ChatFormat
    from discernment.prompts import PromptSet

STRETCHED = ("linear", "dynamic", "yarn")
"""Rotary positions that are stretched by a factor, which a configuration's own limit may leave out."""
SWITCHED = ("dynamic", "longrope")
"""Rotary positions that transformers computes otherwise for a whole batch as soon as one row is longer than a limit."""


class Reader(Protocol):
    """What reads prompts as token ids: a policy, or one that a server of our own replies for.

    Attributes:
        name: What tables call it.
        chat: Its tokenizer and chat format.
        positions: How many tokens of a prompt and its reply can be read; None where nothing limits them.
    """

    name: str
    chat: ChatFormat

    @property
    def positions(self) -> int | None: ...  # noqa: D102  above

    def encode(self, prompts: Sequence[Asked]) -> Sequence[Sequence[int]]:
        """Token ids of each rendered prompt, in every context that it is read in."""


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many positions a model has; None where nothing limits them (recurrent models, ALiBi).

    Args:
        config: The model's configuration.
    """
    config = config.get_text_config()
    alibi = getattr(config, "alibi", False) or getattr(config, "position_embedding_type", None) == "alibi"
    limit: int | None = getattr(config, "max_position_embeddings", None)
    # RWKV calls the length that it was trained on its positions; XLNet says -1 for none.
    if alibi or config.model_type == "rwkv" or limit is None or limit < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in STRETCHED:
        begun = rope.get("original_max_position_embeddings") or limit
        return max(limit, int(begun * (rope.get("factor") or 1)))
    return limit


def steady_positions_of(config: PreTrainedConfig) -> int | None:
    """How many positions a model of transformers' has whose numbers do not hang on what stands beside a prompt.

    Args:
        config: The model's configuration.
    """
    limit = positions_of(config)
    config = config.get_text_config()
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    by_kind_of_layer = [value for value in rope.values() if isinstance(value, dict)]
    begun = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in (rope, *by_kind_of_layer)
        if kind.get("rope_type") in SWITCHED
    ]
    return min(begun, default=limit)


def positions_needed(sequence: Sequence[int], reply: int) -> int:
    """Positions of a prompt, in the longest of its contexts, and of its reply, whose last token is never read."""
    return max(map(len, (sequence, *getattr(sequence, "others", ())))) + max(reply - 1, 0)


def names_of(prompts: PromptSet) -> list[str]:
    """What to call each prompt of a set in a message."""
    return [f"{p.id!r} of {prompts.provenance.name}" for p in prompts]


def beginnings_of(prompts: Sequence[Asked]) -> list[str]:
    """What to call prompts that have no id in a message: how their texts begin."""
    return [repr(text_of(prompt)[:60]) for prompt in prompts]


def check_context(
    policy: Reader,
    sequences: Sequence[Sequence[int]],
    names: Sequence[str] | None = None,
    replies: int | Sequence[int] = 1,
    advice: str = "shorten it or leave it out",
) -> None:
    """Make sure that the policy can read every prompt together with its reply.

    Args:
        policy: The policy.
        sequences: Token ids of the rendered prompts, in all contexts.
        names: What to call each prompt in the message; by default the first 60 characters of what is read.
        replies: Token cap of the replies, or the tokens of each.
        advice: What to do about a prompt that does not fit.

    Raises:
        DataError: If a prompt and its reply have more tokens than the model has positions.
    """
    limit = policy.positions
    if limit is None:
        return
    caps = [replies] * len(sequences) if isinstance(replies, int) else replies
    for number, (sequence, cap) in enumerate(zip(sequences, caps, strict=True)):
        if positions_needed(sequence, cap) <= limit:
            continue
        tokens = positions_needed(sequence, 1)
        name = names[number] if names else repr(str(policy.chat.tokenizer.decode(list(sequence[:60])))[:60])
        longer = f", {tokens + cap} with a reply of {cap}," if cap > 1 else ""
        raise DataError(
            f"The prompt {name} has {tokens} tokens{longer} and {policy.name} can read {limit}; {advice}."
        )


def cut_left(policy: Reader, prompt: Asked, reply: int) -> Asked | None:
    """The longest end of a prompt's text that fits with its reply, cut between two tokens.

    The text is cut, not what the chat template makes of it: beginning and end of the template stay, and so do a system
    message and earlier turns.

    Args:
        policy: The policy.
        prompt: The prompt.
        reply: Token cap of the reply.

    Returns:
        The prompt itself where it fits; None where nothing of it does.
    """
    limit, text = policy.positions, text_of(prompt)

    def fits(start: int) -> bool:
        cut = policy.encode([with_text(prompt, text[start:])])[0]
        return limit is None or positions_needed(cut, reply) <= limit

    if fits(0):
        return prompt
    tokenizer, starts = policy.chat.tokenizer, range(len(text))
    places: Sequence[int] = starts
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        places = sorted({start for start, _ in offsets})
    found = bisect.bisect_left(places, True, key=fits)
    return with_text(prompt, text[places[found] :]) if found < len(places) else None
