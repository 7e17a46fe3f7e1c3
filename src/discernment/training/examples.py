"""Prompts with replies, encoded to be learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from discernment.errors import TrainingError
from discernment.models.chat import ChatFormat
from discernment.policies.context import names_of
from discernment.prompts import Prompt, PromptSet

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""The label of tokens that the loss does not see."""


class TrainingRows(NamedTuple):
    """What is trained on.

    Attributes:
        rows: A column `input_ids`, and either `completion_mask`, which is 1 on tokens that are learned as they are, or
            `labels`, with the token to learn at the place of each, or `IGNORED`.
        names: What messages call each row.
    """

    rows: Dataset
    names: Sequence[str]


def encode_examples(examples: PromptSet, chat: ChatFormat, max_length: int) -> Dataset:
    """Token ids with a mask that is 1 on the reply.

    Args:
        examples: Prompts with responses.
        chat: The model's chat format; the same one renders the prompts in the evaluation.
        max_length: Tokens of prompt and reply together.

    Returns:
        Columns `input_ids` and `completion_mask`, one row an example, in order.

    Raises:
        TrainingError: If a prompt has no response, or fills `max_length` alone.
    """
    from datasets import Dataset

    rows: list[dict[str, Any]] = []
    for example, name in zip(examples, names_of(examples), strict=True):
        if not example.response:
            raise TrainingError(
                f"The prompt {name} has no response to train on; choose sets with responses for the alignment."
            )
        prompt, reply = encode_exchange(example, example.response, name, chat, max_length)
        rows.append({"input_ids": prompt + reply, "completion_mask": [0] * len(prompt) + [1] * len(reply)})
    if not rows:
        raise TrainingError(f"{examples.provenance.name} has no example to train on.")
    return Dataset.from_list(rows)


def encode_exchange(
    prompt: Prompt, reply: str, name: str, chat: ChatFormat, max_length: int
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a reply to it, which is cut where the two are too long.

    Args:
        prompt: The prompt.
        reply: The reply.
        name: What a message calls the prompt.
        chat: The model's chat format.
        max_length: Tokens of prompt and reply together.

    Raises:
        TrainingError: If the prompt fills `max_length` alone.
    """
    asked, said = chat.encode(prompt.asked), chat.encode_reply(prompt.asked, reply)
    if len(asked) >= max_length:
        raise TrainingError(
            f"The prompt {name} has {len(asked)} tokens and leaves no room for its reply; "
            f"raise max_length (now {max_length}) or leave it out."
        )
    return asked, said[: max_length - len(asked)]
