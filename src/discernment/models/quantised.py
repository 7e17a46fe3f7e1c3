"""Models whose weights are held in 4 or 8 bits, and adapters that act beside such weights: folded in, they would be rounded."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from discernment.errors import ModelError

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

Bits = Literal["4bit", "8bit"]
NEW = "default"
"""What peft calls an adapter that nobody has named, and saves without a folder of its own."""


def settings(bits: Bits, dtype: torch.dtype) -> Any:
    """How bitsandbytes holds the weights of linear layers: as in QLoRA (Dettmers et al. 2023), or in LLM.int8().

    Args:
        bits: `4bit` is NF4 with quantised scales.
        dtype: What is computed in.

    Raises:
        ModelError: If bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"`quantization: {bits}` needs bitsandbytes; run `pip install 'discernment[quantization]'`."
        )
    # It would say at every multiplication that its inputs are rounded.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantised(model: Any) -> bool:
    """Whether the weights of a model, or of what an adapter is wrapped around, are held in few bits."""
    return bool(getattr(model, "is_quantized", False))


def let_go(model: PreTrainedModel) -> None:
    """Copy what is not quantised out of the file of the weights, which else stays in memory as a whole."""
    for weights in model.parameters():
        if weights.is_floating_point():
            weights.data = weights.data.clone()


def keep_differentiable(model: PreTrainedModel) -> None:
    """Have 4-bit layers compute as they do in training also where nothing is trained.

    On processors with bfloat16, bitsandbytes otherwise packs the weights at the first look without gradients, for good,
    and multiplies by an operation that no gradient comes back through: training after a look would learn nothing below.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (torch types attributes as tensors)


def put_beside(model: PreTrainedModel, adapter: str) -> None:
    """Put an adapter on the layers of a model, to act beside their weights and those of earlier ones, untrained.

    Args:
        model: The model; its modules are replaced in place.
        adapter: Folder or hub id.
    """
    from peft import PeftModel

    name = f"beside_{len(getattr(model, 'peft_config', {}))}"
    with _several_are_meant():
        wrapped: Any = PeftModel.from_pretrained(model, adapter, adapter_name=name)
    wrapped.base_model.set_adapter(list(wrapped.peft_config), inference_mode=True)


def add_beside(network: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Wrap a new adapter around a model, beside those that `put_beside` put there; it alone is trained.

    Args:
        network: The model.
        config: The new adapter's.
    """
    from peft import get_peft_model

    with _several_are_meant():
        wrapped: PeftModel = get_peft_model(network, config)
    activate(wrapped)
    return wrapped


@contextmanager
def _several_are_meant() -> Iterator[None]:
    """Without peft's doubts about a model that has adapters already."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(PEFT for a second time|`peft_config` attribute).*")
        yield


def activate(wrapped: PeftModel) -> None:
    """Have all adapters of a model act, and only the newest trained."""
    names = sorted(wrapped.peft_config, key=lambda name: name != NEW)  # trainers save and load the first
    if len(names) > 1:
        base: Any = wrapped.base_model
        base.set_adapter(names)
        for name, weights in wrapped.named_parameters():
            if any(f".{below}." in name for below in names[1:]):
                weights.requires_grad_(False)
