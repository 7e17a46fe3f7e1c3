"""A small finished run, and what may happen to its files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from discernment.runs.recipe import Recipe, parse_recipe
from tiny import make_benign, make_model, make_prompts

DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "gone": None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "other bytes": lambda content: random.Random(0).randbytes(len(content)),
    "text": lambda content: b"not what it was\n",
    "list": lambda content: b"[]\n",
    "null": lambda content: b"null\n",
    "mapping": lambda content: b'{"methods": 1, "inputs": [], "stages": "x"}\n',
}


def damage(path: Path, kind: str) -> None:
    """Let one of `DAMAGES` happen to a file."""
    change = DAMAGES[kind]
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


def make_recipe(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Recipe:
    """A recipe with both training stages on a tiny model; what it needs is written into a folder."""
    make_model("llama", len(tokenizer)).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    make_prompts(4).to_jsonl(folder / "pairs.jsonl")
    make_benign(4).to_jsonl(folder / "benign.jsonl")
    pairs, benign = str(folder / "pairs.jsonl"), str(folder / "benign.jsonl")
    return parse_recipe(
        {
            "name": "try",
            "model": str(folder / "tiny"),
            "data": {"general": benign, "safety": pairs, "contrast": pairs},
            "refine": {"layer": 2, "steps": 2, "batch_size": 4, "lora": {"rank": 2, "keep": "adapter"}},
            "methods": ["base", "dcr"],
            "evaluate": {
                "max_new_tokens": 3,
                "unscored_limit": 1,  # a tiny model says nothing that can be read
                "openings": ["Sorry"],
                "benchmarks": [pairs],
            },
        },
        "try",
    )
