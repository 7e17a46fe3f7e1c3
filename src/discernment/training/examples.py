"""Prompts with replies, encoded to be learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from discernment.errors import TrainingError
from discernment.models.chat import ChatFormat
from discernment.prompts import PromptSet

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
    for example in examples:
        if not example.response:
            raise TrainingError(
                f"The prompt {example.id!r} of {examples.provenance.name} has no response to train on; "
                "choose sets with responses for the alignment."
            )
        prompt, reply = chat.encode(example.asked), chat.encode_reply(example.asked, example.response)
        if len(prompt) >= max_length:
            raise TrainingError(
                f"The prompt {example.id!r} has {len(prompt)} tokens and leaves no room for its reply; "
                f"raise max_length (now {max_length}) or leave it out."
            )
        ids = (prompt + reply)[:max_length]
        rows.append({"input_ids": ids, "completion_mask": [0] * len(prompt) + [1] * (len(ids) - len(prompt))})
    if not rows:
        raise TrainingError(f"{examples.provenance.name} has no example to train on.")
    return Dataset.from_list(rows)
