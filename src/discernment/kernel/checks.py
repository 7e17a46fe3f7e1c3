"""What a model must be like so that its kernel can be measured exactly; all else ends in one sentence."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.kernel.collect import Block
from discernment.kernel.gram import Storage
from discernment.kernel.kernel import KernelOptions
from discernment.kernel.survey import Rules
from discernment.models.layers import find_layers
from discernment.models.linear import is_linear
from discernment.models.quantised import is_quantised
from discernment.policies.policy import Policy


def check_weights(policy: Policy, options: KernelOptions) -> None:
    """Make sure that the parameters to measure are there, and held in float32 or float64.

    Raises:
        ModelError: If they are not, or a layer is out of range.
    """
    layers = find_layers(policy.model, policy.layer_path)
    for layer in options.layers or ():
        layers.check(layer)
    if options.parameters == "all" and is_quantised(policy.model):
        raise ModelError(
            f"The weights of {policy.name} are quantised, so that they have no gradients to measure; load it without "
            "`quantization`, or measure the adapters beside them with `parameters: lora`."
        )
    parameters = policy.model.named_parameters()
    wanted = {name: p.dtype for name, p in parameters if options.counts(name, layers.path)}
    if not wanted:
        raise nothing_asked_for(policy, options)
    for name, dtype in wanted.items():
        if dtype not in (torch.float32, torch.float64):
            raise ModelError(
                f"{policy.name} has {dtype} weights ({name}); load it with `dtype: float32` for the kernel."
            )


def nothing_asked_for(policy: Policy, options: KernelOptions) -> ModelError:
    """What to say where a model has no parameters to measure."""
    return ModelError(
        f"{policy.name} has none of the parameters that were asked for ({options.parameters}); adapters that were merged "
        "are gone."
    )


def find_head(model: Any) -> Any:
    """The linear module that gives the logits, within what peft has put around it.

    Raises:
        ModelError: If there is none, or it does not give the logits by itself.
    """
    head, kind = model.get_output_embeddings(), type(model).__name__
    if hasattr(head, "token_adapter"):
        raise ModelError(
            f"The head of {kind} is within a {type(head).__name__}, which puts other rows into its weight; merge the "
            "adapter."
        )
    if hasattr(head, "modules_to_save"):
        trained = head.active_adapters and not head.disable_adapters
        head = head.modules_to_save[head.active_adapters[0]] if trained else head.original_module
    head = getattr(head, "base_layer", head)
    if head is None or not is_linear(head):
        raise ModelError(f"{kind} has no linear head, so it gives no logits to measure.")
    return head


def check_covered(model: nn.Module, layers: Sequence[Mapping[str, nn.Module]]) -> None:
    """Make sure that a model has linear layers.

    Raises:
        ModelError: If not.
    """
    if not any(is_linear(m) for inside in layers for m in inside.values()):
        raise ModelError(
            f"{type(model).__name__} has no linear layers, which are what the kernel is built from."
        )


def check_passage(model: nn.Module, hidden: Sequence[Tensor], layers: int, shape: Sequence[int]) -> None:
    """Make sure that one state a token went through each layer once.

    Args:
        model: The model.
        hidden: What went into each layer, and what came out of the last one.
        layers: How many layers there are.
        shape: Prompts and tokens.

    Raises:
        ModelError: If not.
    """
    kind = type(model).__name__
    if len(hidden) != layers + 1:
        raise ModelError(
            f"{kind} does not run each of its {layers} layers once, so its gradients cannot be passed back through "
            "them."
        )
    if not all(states.ndim == 3 and states.shape[:2] == tuple(shape) for states in hidden):
        raise ModelError(
            f"{kind} hands more than one state a token from layer to layer, which the kernel cannot cover."
        )


def check_room(
    storage: Storage,
    rules: Rules,
    parts: Sequence[Mapping[str, nn.Module]],
    wanted: Callable[[str], bool],
    gradients: int,
) -> None:
    """Make sure that the gradients of parameters without a rule can be kept, one part of the model at a time.

    Args:
        storage: What keeps them.
        rules: By which rule each parameter goes.
        parts: The modules of each part, by name.
        wanted: Whether the parameters of the module with a given name count.
        gradients: How many gradients there are: prompts times rows.

    Raises:
        ModelError: If there is not enough room.
    """
    room = storage.budget + shutil.disk_usage(tempfile.gettempdir()).free
    for part in parts:
        free = [getattr(m, n) for name, m in part.items() if wanted(name) for n in rules.free.get(name, ())]
        needed = gradients * sum(p.numel() * p.element_size() for p in free)
        if needed > room:
            largest = max((name for name in part if name in rules.free and wanted(name)), key=_size(part))
            raise ModelError(
                f"There is no short cut to the gradients of {largest} ({type(part[largest]).__name__}), and all of "
                f"them would take {needed / 2**30:,.0f} GiB where {room / 2**30:,.0f} GiB are free for temporary "
                "files; take fewer prompts or rows (`k`), or measure a part of the model with `layers` or "
                "`parameters`."
            )


def _size(modules: Mapping[str, nn.Module]) -> Callable[[str], int]:
    return lambda name: sum(p.numel() for p in modules[name].parameters(recurse=False))


def check_repeats(model: nn.Module, block: Block, output: Tensor, before: Tensor, number: int) -> None:
    """Make sure that a layer that is run again by itself gives what it gave within the model.

    Raises:
        ModelError: If it does not.
    """
    again, first = (torch.where(block.tokens[..., None], x, 0) for x in (output, before))
    if not float((again - first).norm()) <= 1e-3 * float(first.norm()):
        raise _more_than_states(model, f"Layer {number}")


def check_same(
    model: nn.Module, number: int, found: Tensor, expected: Tensor, past: Sequence[Tensor | None]
) -> None:
    """Make sure that the gradient that came through the layers one by one is that of the model as a whole.

    Args:
        model: The model.
        number: The layer whose input the gradient belongs to.
        found: The gradient through one layer after the other.
        expected: The gradient of the whole.
        past: Gradients of what comes before layer 1, but for what goes through its input.

    Raises:
        ModelError: If it is not.
    """
    if not float((found - expected).norm()) <= 1e-3 * float(expected.norm()):
        raise _more_than_states(model, f"A layer behind layer {number}")
    if any(gradient is not None and gradient.any() for gradient in past):
        raise ModelError(
            f"{type(model).__name__} hands its embeddings on past the hidden states of layer 1, so that the kernel "
            "cannot cover them; leave them out with `layers`."
        )


def _more_than_states(model: nn.Module, layer: str) -> ModelError:
    return ModelError(
        f"{layer} of {type(model).__name__} gets more than the hidden states from the layers before it, so its "
        "gradients cannot be passed back through them and the kernel cannot cover this model."
    )
