"""Every causal language model of the installed transformers, made tiny, and what one prompt alone gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from discernment.models.layers import find_layers

RULES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
LEFT_OUT = {family: why for why, families in RULES["left_out"].items() for family in families.split()}
SIZES = {name: size for size, names in RULES["sizes"].items() for name in names.split()}
FIXED = {"pad_token_id": 0, "bos_token_id": 1, "is_decoder": True}
ALIBI = "falcon (alibi)"
ODD = {
    family: changes
    for families, changes in RULES["odd"].items()
    for family in ([families] if families == ALIBI else families.split())
}
FAMILIES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, ALIBI} - set(LEFT_OUT))


def make_tiny(family: str, vocabulary: int = 400, **changes: Any) -> PreTrainedModel:
    """A model of a family with random weights large enough to matter; `changes` may name the attention."""
    kind: Any = CONFIG_MAPPING[family.removesuffix(" (alibi)")]
    own, renamed = kind().to_dict(), getattr(kind, "attribute_map", {})
    small = {
        key: value
        for key, value in {**SIZES, **FIXED}.items()
        if (key in own or key in renamed) and renamed.get(key, key) == key
        and not (own.get(key) is None and key == "num_experts")
    }  # fmt: skip
    attention = {k: changes.pop(k) for k in ["attn_implementation"] if k in changes}
    config = kind(**{**small, **ODD.get(family, {}), "vocab_size": vocabulary, **changes})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "A_log" not in name:
                parameter.normal_(0, 0.15, generator=generator)
    return model.eval()


@torch.no_grad()
def logits_alone(model: Any, ids: list[int]) -> Tensor:
    """Logits of one prompt, `[tokens, vocabulary]`: a plain forward pass, nothing else is said."""
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@torch.no_grad()
def state_alone(model: Any, layer: int, ids: list[int]) -> Tensor:
    """What a layer puts out for one prompt, `[tokens, hidden]`."""
    found: list[Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple | list) else output)

    handle = find_layers(model).layers[layer - 1].register_forward_hook(keep)
    try:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return found[0][0]


def mass_alone(model: Any, ids: list[int], openings: list[list[int]]) -> float:
    """Probability that one of several openings, of which none begins with another, follows a prompt."""
    total = 0.0
    for opening in openings:
        steps = logits_alone(model, [*ids, *opening])[len(ids) - 1 :].double().log_softmax(-1)
        total += math.exp(sum(float(steps[n, token]) for n, token in enumerate(opening)))
    return total


def reply_alone(model: Any, ids: list[int], cap: int, ends: set[int]) -> tuple[int, ...]:
    """The likeliest tokens behind a prompt, one plain forward pass each."""
    reply: list[int] = []
    while len(reply) < cap and not ends.intersection(reply):
        reply.append(int(logits_alone(model, [*ids, *reply])[-1].argmax()))
    return tuple(reply)
