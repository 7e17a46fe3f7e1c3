"""What a model and the machine are: sizes, template, memory, speed, the layer that tells the labels apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from discernment.diagnosis.separability import layer_states, recommend_layer, separability
from discernment.errors import DiscernmentError, ModelError
from discernment.models.layers import find_layers
from discernment.models.loading import cannot_load, load_chat, load_config
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, choose_dtype, free_memory
from discernment.policies.context import steady_positions_of
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, Prompt, PromptSet

if TYPE_CHECKING:
    from discernment.models.chat import ChatFormat

PER_LABEL = 64
"""At most so many prompts of each label are read in a try: seconds with a small model."""
ASKED = 32
"""Toxic prompts whose rejection probability is measured."""
GREETING = "Hello"


class Machine(NamedTuple):
    """Where the model would run.

    Attributes:
        device: The kind of device: `cpu`, `cuda`, ...
        devices: How many of them there are; processors count as one.
        free: Bytes that can still be taken on one of them.
        dtype: In what `dtype: auto` computes there.
    """

    device: str
    devices: int
    free: int
    dtype: torch.dtype

    @property
    def in_words(self) -> str:
        """One phrase such as `one cpu with 20.1 GiB free`."""
        count = "one" if self.devices == 1 else str(self.devices)
        name = "processor" if self.device == "cpu" else f"{self.device} device"
        each = "" if self.devices == 1 else " each"
        return f"{count} {name}{'s' if self.devices > 1 else ''} with {gib(self.free)} free{each}"


class ModelFacts(NamedTuple):
    """What a model is, by its configuration and its tokenizer.

    Attributes:
        parameters: How many weights it has; tied ones count once.
        layers: How many layers.
        hidden: Width of the states between them.
        vocabulary: Tokens that it tells apart.
        positions: Tokens that it can read; None where nothing limits them.
        chat: Its tokenizer with its chat format.
        own_system: Tokens of the system message that the template adds by itself.
    """

    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    positions: int | None
    chat: ChatFormat
    own_system: int


class Tried(NamedTuple):
    """What the model did with a few prompts.

    Attributes:
        layer: The layer that `layer: auto` would find.
        reason: Why this one.
        speed: Prompt tokens a second, forward; that of the faster half, since others may work on the machine.
        refused: Mean rejection probability of toxic prompts: above a half, the model is aligned already.
    """

    layer: int
    reason: str
    speed: float
    refused: float


def look_at_machine(spec: ModelSpec) -> Machine:
    """The device that a model would be on, with what is free there now."""
    device = choose_device(spec)
    count = torch.accelerator.device_count() if device.type != "cpu" and spec.device == "auto" else 1
    return Machine(device.type, max(1, count), free_memory(device), choose_dtype(spec, device))


def look_at_model(spec: ModelSpec) -> ModelFacts:
    """Sizes and template of a model; its weights are not read.

    Raises:
        ModelError: If it cannot be found, or its layers cannot.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(spec)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # custom code raises what it likes
        raise ModelError(cannot_load(spec.model, error)) from error
    layers = find_layers(model, spec.layers).layers
    text = config.get_text_config()
    chat = load_chat(spec)
    return ModelFacts(
        parameters=sum(weights.numel() for weights in model.parameters()),
        layers=len(layers),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        positions=steady_positions_of(config),
        chat=chat,
        own_system=_own_system(chat),
    )


def try_model(spec: ModelSpec, prompts: PromptSet) -> Tried:
    """Load a model, and read a few toxic and other prompts with it.

    Args:
        spec: The model.
        prompts: Toxic prompts and others, which are not evaluated on later.

    Raises:
        DiscernmentError: If the model cannot be loaded, or what it does with the prompts cannot be measured.
    """
    policy = Policy.load(spec)
    chosen = few(prompts)
    layer_states(policy, PromptSet(chosen.prompts[:4], chosen.provenance))  # the first pass takes longer
    states, speeds = [], []
    halves = [PromptSet(chosen.prompts[half::2], chosen.provenance) for half in (0, 1)]
    for half in halves:
        tokens = sum(map(len, policy.encode(half.asked)))
        began = time.perf_counter()
        states.append(layer_states(policy, half))
        speeds.append(tokens / max(time.perf_counter() - began, 1e-6))
    read = PromptSet([*halves[0], *halves[1]], chosen.provenance)
    layer, reason = recommend_layer(separability(torch.cat(states, dim=1), read))
    toxic = chosen.with_label(Label.TOXIC).sample(ASKED, 0)
    refused = rejection_probability(policy, toxic.asked)
    return Tried(layer, reason, max(speeds), sum(refused) / len(refused))


def few(prompts: PromptSet) -> PromptSet:
    """At most `PER_LABEL` prompts of each label."""
    drawn: list[Prompt] = []
    for label in Label:
        of_label = [p for p in prompts if p.label is label]
        drawn += PromptSet(of_label, prompts.provenance).sample(PER_LABEL, 0)
    return PromptSet(drawn, prompts.provenance)


def lengths(chat: ChatFormat, prompts: Sequence[Prompt], *, replies: bool) -> list[int]:
    """Tokens of each prompt in the chat format, with its reply where that is asked for and there is one."""
    return [
        len(chat.encode(p.asked))
        + (len(chat.encode_reply(p.asked, p.response)) if replies and p.response else 0)
        for p in prompts
    ]


def gib(count: float) -> str:
    """Bytes in words, such as `2.1 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MiB"


def _own_system(chat: ChatFormat) -> int:
    """Tokens that a template spends on a system message of its own; 0 where it has none, or takes no empty one."""
    if chat.template == "plain" or chat.system is not None:
        return 0
    try:
        return max(0, len(chat.encode(GREETING)) - len(chat.with_system("").encode(GREETING)))
    except DiscernmentError:  # a template that knows no system message
        return 0
