"""The beginning that several prompts share, computed once: its keys and values serve all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from discernment.models.batch import Batch, common_prefix, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache


WORTH_SHARING = 8
"""Tokens that rows must have in common at their beginning before they are run apart."""
WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "window_size",
    "attention_window_size",
    "attention_chunk_size",
)
"""What configurations call the stretch of tokens that a layer's attention does not look beyond."""


def fits_window(model: PreTrainedModel, length: int) -> bool:
    """Whether no attention layer's window cuts a sequence of `length` tokens, padding counted."""
    config = model.config.get_text_config()
    return all(length < window for name in WINDOWS if (window := getattr(config, name, None)) is not None)


def prefix_cache(model: PreTrainedModel, prefix: Batch) -> DynamicCache | None:
    """Keys and values of one shared beginning, to be repeated for the rows of a batch.

    Args:
        model: The model.
        prefix: The shared beginning, `[1, length]`, without padding.

    Returns:
        The cache, or nothing where a layer keeps something else (a recurrent state): the padding that comes between
        the beginning and the rest of a prompt would change it, where attention only masks it.
    """
    run: Any = model
    output = run(**prefix._asdict(), logits_to_keep=1, use_cache=True)
    return keys_and_values(output)


def keys_and_values(output: Any) -> DynamicCache | None:
    """What a pass of a model kept, where that is keys and values and nothing else."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    cache = getattr(output, "past_key_values", None)
    only_keys = isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )
    return cache if only_keys else None


class Begun(NamedTuple):
    """Rows that were read: what replies go on from.

    Attributes:
        batch: All tokens of the rows.
        cache: Keys and values of all but the last one; left as they are.
    """

    batch: Batch
    cache: DynamicCache

    def inputs(self) -> dict[str, Any]:
        """What the model's own `generate` starts from, which changes the cache that it is given."""
        from discernment.models.roomy_cache import with_room

        return {**self.batch._asdict(), "past_key_values": with_room(self.cache)}


def shared_beginning(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int, new: int, *, share: bool
) -> tuple[list[int], DynamicCache | None]:
    """What all rows begin with, and its keys and values for every row.

    Args:
        model: The model.
        rows: Token ids.
        pad_id: The padding token.
        new: How many tokens follow at most.
        share: Run it once, where that pays and keys and values are all that the model keeps; otherwise there is none.
    """
    shared = common_prefix([row[:-1] for row in rows]) if share else []
    longest = max(map(len, rows)) + new
    if len(rows) == 1 or len(shared) < WORTH_SHARING or not fits_window(model, longest):
        return [], None
    cache = prefix_cache(model, pad([shared], pad_id, "left", model.device))
    if cache is None:
        return [], None
    cache.batch_repeat_interleave(len(rows))
    return shared, cache


def behind(shared: Sequence[int], rest: Batch) -> Batch:
    """A batch with a beginning in front of every row: the padding comes behind it."""
    prefix = torch.tensor([shared], dtype=torch.long, device=rest.input_ids.device)
    joined = (
        torch.cat([begin.expand(len(end), -1), end], dim=1)
        for begin, end in zip((prefix, torch.ones_like(prefix)), rest, strict=True)
    )
    return Batch(*joined)


def generation_inputs(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int, new: int, *, share: bool
) -> dict[str, Any]:
    """What the model's own `generate` starts from.

    Args:
        model: The model.
        rows: Token ids.
        pad_id: The padding token.
        new: How many tokens are generated at most.
        share: Run what all rows begin with once, where that pays; see `shared_beginning`.
    """
    shared, cache = shared_beginning(model, rows, pad_id, new, share=share)
    batch = behind(shared, pad([row[len(shared) :] for row in rows], pad_id, "left", model.device))
    return {**batch._asdict(), **({} if cache is None else {"past_key_values": cache})}
