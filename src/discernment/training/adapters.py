"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): put on, and kept as PEFT writes them.

Names in the adapter are those of the whole model, also where only a part of it was trained, so that plain `peft`
loads it onto the model that the stage started from.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from discernment.frozen import Frozen
from discernment.models.chat import ChatFormat
from discernment.models.layers import LayerList
from discernment.policies.policy_spec import PolicySpec

LINEAR = (torch.nn.Linear, Conv1D)


class LoraOptions(Frozen):
    """Low-rank adapters on every linear layer that the stage trains."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    keep: Literal["adapter", "merged", "both"] = Field(
        "both", description="What the stage leaves: the adapter, the model that it is merged into, or both."
    )


def add_adapter(
    network: PreTrainedModel, layers: LayerList, numbers: Iterable[int], options: LoraOptions
) -> PeftModel:
    """Put an adapter on all linear modules of some layers; nothing else is trained any more.

    Args:
        network: The whole model, perhaps with its last layers cut off; its modules are replaced in place.
        layers: Its layers.
        numbers: Which of them, counted from 1.
        options: The adapter's size.
    """
    targets = [
        f"{layers.path}.{number - 1}.{name}"
        for number in numbers
        for name, module in layers.layers[number - 1].named_modules()
        if isinstance(module, LINEAR)
    ]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(network, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def leave_policy(
    start: PolicySpec, network: Any, chat: ChatFormat, options: LoraOptions | None, out: Path
) -> PreTrainedModel:
    """Write what a training stage leaves: the model, the adapter, or both, and the policy that they make.

    Args:
        start: The policy that the stage started from.
        network: The trained model, or the adapter that is wrapped around it, which is folded in.
        chat: Its tokenizer and chat format.
        options: Of the adapter; None where there is none.
        out: The stage's directory: gets `policy.json`, and `model/` and `adapter/` as far as they are to be kept.

    Returns:
        The model with the adapter folded in.
    """
    left = start.model_copy(update={"adapters": ()}).with_model(model=str(out / "model"), revision=None)
    if options is not None and options.keep != "merged":
        network.save_pretrained(out / "adapter")
    if options is not None:
        network = network.merge_and_unload()
    if options is not None and options.keep == "adapter":
        left = start.model_copy(update={"adapters": (*start.adapters, str(out / "adapter"))})
    else:
        network.save_pretrained(out / "model")
        chat.tokenizer.save_pretrained(out / "model")
    left.write(out)
    merged: PreTrainedModel = network
    return merged
