"""The beginning that several prompts share, computed once: its keys and values serve all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from discernment.models.batch import Batch, common_prefix, pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache


WORTH_SHARING = 8
"""Tokens that rows must have in common at their beginning before they are run apart."""


def fits_window(model: PreTrainedModel, length: int) -> bool:
    """Whether no attention layer's sliding window cuts a sequence of `length` tokens, padding counted."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is None or length < window


def prefix_cache(model: PreTrainedModel, prefix: Batch) -> DynamicCache | None:
    """Keys and values of one shared beginning, to be repeated for the rows of a batch.

    Args:
        model: The model.
        prefix: The shared beginning, `[1, length]`, without padding.

    Returns:
        The cache, or nothing where a layer keeps something else (a recurrent state): the padding that comes between
        the beginning and the rest of a prompt would change it, where attention only masks it.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    run: Any = model
    output = run(**prefix._asdict(), logits_to_keep=1, use_cache=True)
    cache = getattr(output, "past_key_values", None)
    only_keys = isinstance(cache, DynamicCache) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    )
    return cache if only_keys else None


def generation_inputs(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_id: int, new: int, *, share: bool
) -> dict[str, Any]:
    """What the model's own `generate` starts from.

    Args:
        model: The model.
        rows: Token ids.
        pad_id: The padding token.
        new: How many tokens are generated at most.
        share: Run what all rows begin with once, where that pays and keys and values are all that the model keeps.
    """

    def batch(some: Sequence[Sequence[int]]) -> Batch:
        return pad(some, pad_id, "left", model.device)

    shared = common_prefix([row[:-1] for row in rows]) if share else []
    longest = max(map(len, rows)) + new
    if len(rows) == 1 or len(shared) < WORTH_SHARING or not fits_window(model, longest):
        return batch(rows)._asdict()
    prefix = batch([shared])
    cache = prefix_cache(model, prefix)
    if cache is None:
        return batch(rows)._asdict()
    cache.batch_repeat_interleave(len(rows))
    rest = batch([row[len(shared) :] for row in rows])  # the padding comes behind the beginning
    joined = (
        torch.cat([begin.expand(len(rows), -1), end], dim=1) for begin, end in zip(prefix, rest, strict=True)
    )
    return {**Batch(*joined)._asdict(), "past_key_values": cache}
