"""Tiny models that were taught what to reply."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from discernment.models.chat import ChatFormat
from tiny import make_model


def taught_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    exchanges: Sequence[tuple[str, str]],
    steps: int = 45,
    family: str = "llama",
) -> Path:
    """Teach a tiny model the beginnings of replies, and save it.

    Args:
        folder: Gets the model.
        tokenizer: Its tokenizer.
        exchanges: Prompts and what replies to them begin with.
        steps: Steps over all of them.
        family: Its architecture.
    """
    model, chat = make_model(family, len(tokenizer)), ChatFormat(tokenizer)
    rows = [(chat.encode(text), chat.encode_opening(reply)) for text, reply in exchanges]
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids, labels = torch.zeros(2, len(rows), longest, dtype=torch.long)
    labels.fill_(-100)
    for n, (prompt, reply) in enumerate(rows):
        whole = torch.tensor(prompt + reply)
        ids[n, : len(whole)] = whole
        labels[n, len(prompt) : len(whole)] = whole[len(prompt) :]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
