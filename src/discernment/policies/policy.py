"""A policy: a model with its tokenizer and chat format, which can reply and give next-token logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from discernment.models.batch import Batch, common_prefix, pad
from discernment.models.chat import ChatFormat
from discernment.models.loading import load_chat, load_model
from discernment.models.model_spec import ModelSpec
from discernment.models.prefix import fits_window, prefix_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Completion", "Policy"]

WORTH_SHARING = 8
"""Tokens that prompts must have in common at their beginning before they are computed apart."""


@dataclass(frozen=True)
class Completion:
    """What a policy generated.

    Attributes:
        text: The reply without special tokens.
        finished: Whether it ended by itself, not at the token cap.
        tokens: Number of generated tokens, the end token included.
    """

    text: str
    finished: bool
    tokens: int


class Policy:
    """A model that replies to prompts.

    Methods that act at decoding time override `generate` and `next_token_logits`.

    Args:
        model: A causal language model in evaluation mode.
        chat: Its tokenizer and chat format.
        name: What to call it in tables.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatFormat, name: str) -> None:
        self.model = model
        self.chat = chat
        self.name = name

    @classmethod
    def load(cls, spec: ModelSpec | str, name: str | None = None) -> Policy:
        """Load a policy.

        Raises:
            ModelError: If the model or its tokenizer cannot be loaded.
        """
        spec = ModelSpec.model_validate(spec)
        chat = load_chat(spec)
        return cls(load_model(spec), chat, name or spec.model)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each rendered prompt."""
        return [self.chat.encode(p) for p in prompts]

    def batch(self, sequences: Sequence[Sequence[int]]) -> Batch:
        """Left-padded batch on the model's device."""
        pad_id = self.chat.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        return pad(sequences, pad_id, "left", self.model.device)

    @torch.inference_mode()
    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Logits of the token that follows each sequence of token ids, `[batch, vocabulary]`, float32."""
        batch = self.batch(sequences)
        output = self.model(
            **batch._asdict(), position_ids=batch.position_ids, logits_to_keep=1, use_cache=False
        )
        logits: Tensor = output.logits[:, -1]
        return logits.float()

    @torch.inference_mode()
    def generate(self, sequences: Sequence[Sequence[int]], max_new_tokens: int) -> list[Completion]:
        """Greedy replies to already encoded prompts, one batch.

        A beginning that all prompts share (a system message) is computed once.

        Args:
            sequences: Token ids of the rendered prompts.
            max_new_tokens: Token cap of each reply.
        """
        from transformers import GenerationConfig

        inputs = self._inputs(sequences, max_new_tokens)
        ends = {self.chat.end_of_turn, self.chat.tokenizer.eos_token_id, *self._own_ends()}
        # Said in full, because what is left out is filled from the model's own configuration, which may sample.
        config = GenerationConfig(
            do_sample=False,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(i for i in ends if i is not None),
            pad_token_id=self.chat.tokenizer.pad_token_id,
        )
        generate: Any = self.model.generate
        output = generate(**inputs, generation_config=config)
        replies = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._completion(reply, ends) for reply in replies]

    def _inputs(self, sequences: Sequence[Sequence[int]], max_new_tokens: int) -> dict[str, Any]:
        """What the model's own `generate` starts from."""
        shared = common_prefix([s[:-1] for s in sequences])
        longest = max(map(len, sequences)) + max_new_tokens
        if len(sequences) == 1 or len(shared) < WORTH_SHARING or not fits_window(self.model, longest):
            return self.batch(sequences)._asdict()
        prefix = self.batch([shared])
        cache = prefix_cache(self.model, prefix)
        if cache is None:
            return self.batch(sequences)._asdict()
        cache.batch_repeat_interleave(len(sequences))
        rest = self.batch([s[len(shared) :] for s in sequences])  # the padding comes behind the beginning
        joined = (
            torch.cat([begin.expand(len(sequences), -1), end], dim=1)
            for begin, end in zip(prefix, rest, strict=True)
        )
        return {**Batch(*joined)._asdict(), "past_key_values": cache}

    def _own_ends(self) -> list[int]:
        own = getattr(self.model.generation_config, "eos_token_id", None)
        return own if isinstance(own, list) else [own] if own is not None else []

    def _completion(self, reply: list[int], ends: set[int | None]) -> Completion:
        length = next((n for n, token in enumerate(reply, start=1) if token in ends), None)
        kept = reply[:length]
        text = str(self.chat.tokenizer.decode(kept, skip_special_tokens=True)).strip()
        return Completion(text=text, finished=length is not None, tokens=len(kept))
