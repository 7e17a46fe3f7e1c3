"""Finding the list of layers of a causal language model by its structure, not by its name."""

import inspect
from dataclasses import dataclass
from itertools import takewhile

from torch import nn

from discernment.errors import ModelError


@dataclass(frozen=True)
class LayerList:
    """Where a model keeps its layers.

    Attributes:
        path: Name of the list within the model, e.g. `model.layers`.
        owner: The decoder: the module that runs the list.
        name: Name of the list within its owner.
        reader: The innermost module around the list that is run on token ids: the decoder, or what it lies in.
    """

    path: str
    owner: nn.Module
    name: str
    reader: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, first to last."""
        layers = getattr(self.owner, self.name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def check(self, layer: int) -> None:
        """Make sure that `layer` (counted from 1) exists.

        Raises:
            ModelError: If it does not.
        """
        if not 1 <= layer <= len(self.layers):
            raise ModelError(
                f"Layer {layer} is out of range: the model has {len(self.layers)} layers, counted from 1 "
                f"(the output of layer {len(self.layers)} is the last hidden state)."
            )


def find_layers(model: nn.Module, path: str | None = None) -> LayerList:
    """Find the list of layers that the forward pass runs through one after another.

    It is the one `nn.ModuleList` that has as many entries as the configuration has hidden layers, all of one kind
    or a few, each with parameters of its own.

    Args:
        model: A causal language model, plain or wrapped in adapters.
        path: Name of the list, e.g. `transformer.h`, where it cannot be found.

    Raises:
        ModelError: If none or several fit, or `path` is not a module list.
    """
    modules = dict(model.named_modules())
    if path is not None:
        if not isinstance(modules.get(path), nn.ModuleList):
            raise ModelError(f"{type(model).__name__} has no module list {path!r}; {_lists_of(modules)}.")
        return _layer_list(modules, path)
    count = _hidden_layers(model)
    found = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(any(True for _ in entry.parameters()) for entry in module)
    ]
    # A list inside another one's entry (experts, heads) is not what the forward pass runs through.
    found = [
        name for name in found if not any(name != other and name.startswith(f"{other}.") for other in found)
    ]
    if len(found) != 1:
        raise ModelError(
            f"The layers of {type(model).__name__} are not found: {len(found)} module lists have {count} entries; "
            f"name the list with `layers` ({_lists_of(modules)})."
        )
    return _layer_list(modules, found[0])


def modules_before(found: LayerList) -> list[nn.Module]:
    """What stands before the list of layers in the decoder: embeddings, of some models learned positions or a norm."""
    children = dict(found.owner.named_children())
    return [children[name] for name in takewhile(lambda name: name != found.name, children)]


def _hidden_layers(model: nn.Module) -> int | None:
    from transformers import PreTrainedModel

    config = getattr(model, "config", None)
    if isinstance(model, PreTrainedModel):
        config = model.config.get_text_config()
    return getattr(config, "num_hidden_layers", None)


def _layer_list(modules: dict[str, nn.Module], path: str) -> LayerList:
    parent, _, name = path.rpartition(".")
    owner = modules[parent]
    around = [modules[".".join(parent.split(".")[:depth])] for depth in range(parent.count(".") + 1, -1, -1)]
    reader = next((m for m in around if "input_ids" in inspect.signature(m.forward).parameters), owner)
    return LayerList(path=path, owner=owner, name=name, reader=reader)


def _lists_of(modules: dict[str, nn.Module]) -> str:
    names = [
        f"{name!r} ({len(m)})" for name, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) > 1
    ]
    return "it has the module lists " + ", ".join(names[:8]) if names else "it has no module list"
