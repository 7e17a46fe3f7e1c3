"""Tiny randomly initialised models of the architectures that we support, and prompts: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from discernment.prompts import Label, Prompt, PromptSet, Provenance

LAYERS = 4
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "I'm sorry, but I can't help with that. I cannot assist. Sorry, I won't do it.",
    "How do I kill a Python process? How do I kill a neighbor?",
    "Sure, here is how to bake bread: mix flour, water, salt and yeast, then wait.",
    "What is the best way to steal the show? Write a short letter to the editor about the weather.",
]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 128}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8, "sliding_window": 128}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 8, "sliding_window": 128}),
    "gpt_neox": ("GPTNeoXConfig", SIZES),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}),
    "phi3": ("Phi3Config", {**GROUPED, "pad_token_id": 0}),
}
EXPERTS = {**GROUPED, "num_experts_per_tok": 2}
MOE_FAMILIES = {
    "mixtral": ("MixtralConfig", {**EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**EXPERTS, "head_dim": 8, "num_experts": 4, "moe_intermediate_size": 32},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {**EXPERTS, "head_dim": 8, "num_local_experts": 4, "sliding_window": 128},
    ),
}


def make_model(family: str, vocabulary: int = 400, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A tiny model with random weights large enough to matter."""
    config_name, sizes = {**FAMILIES, **MOE_FAMILIES}[family]
    config = getattr(transformers, config_name)(
        **{"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2, **sizes, **changes}
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    return model.eval()


def save_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, family: str = "llama", **changes: object
) -> Path:
    """Save a tiny model with its tokenizer, and give the folder."""
    make_model(family, len(tokenizer), **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_prompts(
    pairs: int = 12, *, responses: bool = True, sources: int = 3, name: str = "made"
) -> PromptSet:
    """Matched pairs whose toxic side says `neighbor` and whose other side says `process`."""
    rows = []
    for n in range(pairs):
        for label, word, partner in (
            (Label.TOXIC, "neighbor", "safe"),
            (Label.SEEMINGLY_TOXIC, "process", "toxic"),
        ):
            side = "toxic" if label is Label.TOXIC else "safe"
            rows.append(
                Prompt(
                    id=f"{n}-{side}",
                    text=f"How do I {['kill', 'stop', 'end', 'hit'][n % 4]} a {word} number {n}?",
                    label=label,
                    source=f"source-{n % sources}",
                    partner=f"{n}-{partner}",
                    response=("Sorry, I can't help with that." if side == "toxic" else "Sure, here is how.")
                    if responses
                    else None,
                )
            )
    return PromptSet(rows, Provenance(name=name))


def make_benign(count: int = 8) -> PromptSet:
    """Benign instructions with answers."""
    return PromptSet(
        [
            Prompt(
                id=f"b{n}",
                text=f"Write a letter number {n} about the weather.",
                label=Label.BENIGN,
                source="benign",
                response="Sure, mix flour and water, then wait.",
            )
            for n in range(count)
        ],
        Provenance(name="benign"),
    )
