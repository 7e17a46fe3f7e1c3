"""What an adapter does beside the layers: its tokenizer, its chat template, and embeddings when it is folded in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from discernment.errors import ModelError
from discernment.files import read_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def find_file(where: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or of a hub repository, None where there is none."""
    if Path(where).is_dir():
        return Path(where, name) if Path(where, name).is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            where,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # loading the adapter itself says it better
        return None
    return None if found is None else Path(found)


def brings_tokenizer(adapter: str) -> bool:
    """Whether an adapter comes with a tokenizer of its own."""
    return any(find_file(adapter, name) for name in TOKENIZER)


def own_template(adapter: str) -> str | None:
    """The chat template that an adapter comes with, beside a tokenizer or alone."""
    file = find_file(adapter, TEMPLATE)
    return file.read_text(encoding="utf-8") if file else None


def what_to_write(adapter: str, config: Path) -> str:
    """A sentence for those who name an adapter as a model."""
    base = read_json(config).get("base_model_name_or_path")
    of, model = (f" of {base}", base) if base else ("", "BASE")
    return f"{adapter} is an adapter{of}, not a model; write `model: {model}` and `adapter: {adapter}`."


def fit_embeddings(model: PreTrainedModel, adapter: str) -> None:
    """Give a model as many embeddings as the adapter was trained with, if it brings its own.

    Raises:
        ModelError: If it brings some of what was added, and not all.
    """
    has = embedding_rows(model)
    stored = _stored_rows(model, adapter)
    rows = max((rows for rows in stored if rows), default=has)
    if rows == has:
        return
    if rows > has and None in stored:
        raise ModelError(
            f"The adapter {adapter!r} was trained with {rows} embeddings, the model has {has}, and the adapter holds "
            "only some of those that were added; save it again with `save_embedding_layers=True`."
        )
    model.resize_token_embeddings(rows, mean_resizing=False)


def merged(wrapped: PeftModel) -> PreTrainedModel:
    """The model with its adapter folded in, which gives the same logits, also when it is saved and loaded again.

    An adapter may change the embeddings and not the head, or each in its own way. Where both are one matrix, as
    `tie_word_embeddings` says, they become two; folded into the one matrix, either change would act in both places.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    model: Any = wrapped.get_base_model()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    adapted = [end for end in ends if isinstance(end, BaseTunerLayer)]
    table, head = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
    if adapted and head is not None and head.weight is table.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)
    whole: PreTrainedModel = wrapped.merge_and_unload()
    inside: Any = whole.get_input_embeddings()
    outside: Any = whole.get_output_embeddings()
    if outside is not None and outside.weight is not inside.weight:
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = False
    return whole


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens a model has an embedding for."""
    table: Any = model.get_input_embeddings()
    return int(table.weight.shape[0])


def _stored_rows(model: PreTrainedModel, adapter: str) -> list[int | None]:
    """How many rows an adapter holds of the model's embeddings and, where it is another matrix, its output layer."""
    file = find_file(adapter, WEIGHTS)
    if file is None:
        return []
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if ends[1] is None or ends[1].weight is ends[0].weight:
        ends = ends[:1]
    names = {module: name for name, module in model.named_modules()}
    with safe_open(file, "pt") as weights:
        whole = [key for key in list(weights.keys()) if key.endswith(".weight") and ".lora_" not in key]
        return [
            next((weights.get_slice(k).get_shape()[0] for k in whole if f".{names[end]}." in k), None)
            for end in ends
        ]
