"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): put on, and kept as PEFT writes them.

Names in the adapter are those of the whole model, also where only a part of it was trained, so that plain `peft`
loads it onto the model that the stage started from.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache

from discernment.disk import check_room, room
from discernment.errors import TrainingError
from discernment.models.adapter_files import merged
from discernment.models.chat import ChatFormat
from discernment.models.layers import LayerList
from discernment.models.linear import is_linear
from discernment.models.loading import resolve
from discernment.models.model_spec import ModelSpec
from discernment.models.quantised import NEW, add_beside, is_quantised
from discernment.policies.policy_spec import PolicySpec
from discernment.training.options import LoraOptions

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

GENERATION = "generation_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


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
    from peft import LoraConfig

    targets = [
        f"{layers.path}.{number - 1}.{name}"
        for number in numbers
        for name in _linear(layers.layers[number - 1])
    ]
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    wrapped = add_beside(network, config)
    # PEFT shortens many names to their last parts, as far as these are unambiguous in what it sees of the model.
    wrapped.peft_config[NEW].target_modules = set(targets)
    return wrapped


def _linear(layer: torch.nn.Module) -> list[str]:
    """Names of the linear modules of a layer, also of those that other adapters act beside."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = dict(layer.named_modules())
    adapted = [name for name, module in modules.items() if isinstance(module, BaseTunerLayer)]
    return [
        name
        for name, module in modules.items()
        if is_linear(module.get_base_layer() if name in adapted else module)
        and not any(name.startswith(f"{around}.") for around in adapted)
    ]


def leave_policy(
    start: PolicySpec, network: Any, chat: ChatFormat, options: LoraOptions | None, out: Path
) -> PreTrainedModel:
    """Write what a training stage leaves: the model, the adapter, or both, and the policy that they make.

    Beside the weights, `model/` holds what the model started with: its configuration (but for the dtype, which is that of
    the saved weights), its generation configuration, and its tokenizer.

    Args:
        start: The policy that the stage started from.
        network: The trained model, or the adapter that is wrapped around it, which is folded in.
        chat: Its tokenizer and chat format.
        options: Of the adapter; None where there is none.
        out: The stage's directory: gets `policy.json`, and `model/` and `adapter/` as far as they are to be kept.

    Returns:
        The model with the adapter folded in, or beside its weights where these are quantised.

    Raises:
        DiskError: If the disk has no room for it; then nothing of it is left.
    """
    own = {"model": str(out / "model"), "revision": None, "tokenizer": None}  # the tokenizer is saved with it
    left = start.model_copy(update={"adapters": ()}).with_model(**own)
    with room(out), _whole_or_not_at_all(out / "model", out / "adapter"):
        if options is not None and options.keep != "merged":
            network.save_pretrained(out / "adapter", selected_adapters=[NEW])
        if options is not None:
            network = network.get_base_model() if is_quantised(network) else merged(network)
        if options is not None and options.keep == "adapter":
            left = start.model_copy(update={"adapters": (*start.adapters, str(out / "adapter"))})
        else:
            _save_model(start.model, network, chat, out / "model")
        left.write(out)
    whole: PreTrainedModel = network
    return whole


def check_leaving(network: PreTrainedModel, options: LoraOptions | None, out: Path) -> None:
    """Make sure, before a model is trained, that `leave_policy` will be able to write what is to be kept of it.

    Raises:
        DiskError: If there is no room for it.
        TrainingError: If more than an adapter would be written of a quantised model.
    """
    if is_quantised(network) and (options is None or options.keep != "adapter"):
        raise TrainingError(
            "The model is quantised, so an adapter is all that can be trained and kept of it; set `lora: {keep: adapter}` "
            "for both stages."
        )
    if options is None or options.keep != "adapter":
        check_room(out, network.get_memory_footprint(return_buffers=False))


def check_precision(network: PreTrainedModel, options: LoraOptions | None) -> None:
    """Make sure that the weights to be trained can hold what an optimizer keeps of them.

    Raises:
        TrainingError: If they are float16, in which squared gradients become 0 and steps have no bound.
    """
    if options is None and network.dtype is torch.float16:
        raise TrainingError(
            "Weights in float16 cannot be trained; leave `dtype` out, which trains them in float32, or set `lora`."
        )


@contextmanager
def _whole_or_not_at_all(*folders: Path) -> Iterator[None]:
    """Remove folders again that cannot be written to the end."""
    try:
        yield
    except BaseException:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _save_model(spec: ModelSpec, network: PreTrainedModel, chat: ChatFormat, out: Path) -> None:
    from transformers import GenerationConfig

    # transformers refuses one that a trainer has changed and that contradicts itself, as some published ones do.
    own, network.generation_config = network.generation_config, GenerationConfig()
    network.save_pretrained(out)
    network.generation_config = own
    (out / GENERATION).unlink(missing_ok=True)
    _copy(resolve(spec), spec.revision, [GENERATION], out)
    # What is saved again would name the end token where none pads, and classes that other versions do not know.
    chat.tokenizer.save_pretrained(out)  # with the template, which may be an adapter's
    names = {*chat.tokenizer.vocab_files_names.values(), *TOKENIZER}
    where = chat.tokenizer.name_or_path
    _copy(where, spec.revision if where == resolve(spec) else None, sorted(names), out)


def _copy(where: str, revision: str | None, names: Iterable[str], out: Path) -> None:
    """Copy the files that a model's folder, or what was loaded from the hub, has of these; keep the others."""
    for name in names if where else ():
        local = Path(where).is_dir()
        found = Path(where) / name if local else try_to_load_from_cache(where, name, revision=revision)
        if isinstance(found, str | Path) and Path(found).is_file():
            shutil.copyfile(found, out / name)
