"""The beginning that several prompts share, computed once: its keys and values serve all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from discernment.models.batch import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import DynamicCache


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
