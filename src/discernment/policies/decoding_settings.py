"""What a model's generation_config.json asks for, set aside: replies are greedy, or drawn as the caller says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

KEPT = {"eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version"}
"""Keys that say what tokens mean, or who wrote the file; not how to choose tokens."""


def set_aside(own: GenerationConfig) -> list[str]:
    """Names of the keys that would change how the model speaks, sorted.

    Args:
        own: The model's own generation configuration.
    """
    usual = own._get_default_generation_params()
    asked = {
        key: value for key, value in own.to_diff_dict().items() if key not in KEPT and not key.startswith("_")
    }
    # What is switched off, and what is put out beside the tokens, changes no reply.
    return sorted(
        key
        for key, value in asked.items()
        if value is not None
        and value != usual.get(key)
        and not (value is False and usual.get(key) is None)
        and not key.startswith("output_")
    )


@contextmanager
def blank_settings(model: PreTrainedModel) -> Iterator[None]:
    """A `with` block in which the model has no generation configuration of its own.

    `generate` fills what a call leaves open from it, whatever configuration the call brings.

    Args:
        model: The model; it has its own configuration again afterwards.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
