"""How a model can be trained on a machine: in which memory, in which time. Estimates, with the numbers said."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from discernment.runs.first_recipe.circumstances import Machine, ModelFacts, Tried, gib
from discernment.runs.first_recipe.sets import Sizes
from discernment.training.options import LoraOptions

OPTIMIZER = 16
"""Bytes a trained weight: float32 weight and gradient, and AdamW's two moments."""
PER_STATE = 17
"""Numbers that a layer keeps of each token for the backward pass, in widths of its states, without attention scores
(Korthikanti et al. 2022, arXiv 2205.05198, eq. 2: 34 bytes at two a number)."""
USABLE = 0.9
"""Share of the free memory to plan with."""
BITS4 = 0.65
"""Bytes a weight in 4 bits with its scales, some of them being kept whole."""
BACKWARD = 4.0
"""A training step against a forward pass over the same tokens, optimizer included."""
OPENINGS = 1.7
"""Reading a prompt with all refusal openings behind it, against reading it (README, Speed)."""
GENERATED = 3.0
"""A generated token against one that is read, in batches."""
FIXED, PER_METHOD = 40.0, 10.0
"""Seconds of a run and of each of its methods that depend on nothing here: imports, loading, the report."""
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)


class Way(NamedTuple):
    """How the weights are trained.

    Attributes:
        name: What it is called.
        needed: Bytes that stage 2 takes, by estimate.
        fits: Whether the machine has them.
        batch: Examples a step on the device.
        accumulation: Such batches a step.
        checkpointing: Whether activations are computed again instead of kept.
        lora: Whether adapters are trained instead of all weights.
        model: Options of the model that it needs.
        before: The ways before it, with what they need.
    """

    name: str
    needed: float
    fits: bool
    batch: int = 8
    accumulation: int = 1
    checkpointing: bool = False
    lora: bool = False
    model: Mapping[str, Any] = {}
    before: Sequence[str] = ()


class Work(NamedTuple):
    """How many tokens a recipe goes through.

    Attributes:
        examples: Tokens of the examples of `stl`.
        augmented: Those of `stl_aug`.
        contrast: Mean tokens of a contrasted prompt.
        tests: Test prompts.
        asked: Their mean tokens.
    """

    examples: int
    augmented: int
    contrast: float
    tests: int
    asked: float


def choose_way(facts: ModelFacts, machine: Machine, longest: int, contrasted: int) -> Way:
    """The first way to train, the plainest first, that the free memory of the machine suffices for; else the smallest.

    Args:
        facts: The model.
        machine: The machine.
        longest: Tokens of the longest example.
        contrasted: Tokens of a batch of stage 1.
    """
    before: list[str] = []
    way = None
    for name, options in _ways(machine):
        needed = _memory(facts, machine, longest, contrasted, options)
        way = Way(
            name=name, needed=needed, fits=needed <= USABLE * machine.free, before=(*before,), **options
        )
        if way.fits:
            break
        before.append(f"{name} {gib(needed)}")
    assert way is not None
    return way


def _ways(machine: Machine) -> list[tuple[str, dict[str, Any]]]:
    small = {"batch": 2, "accumulation": 4, "checkpointing": True}
    ways: list[tuple[str, dict[str, Any]]] = [
        ("full fine-tuning", {}),
        ("full fine-tuning in small batches", small),
        ("LoRA", {"lora": True}),
        ("LoRA in small batches", {"lora": True, **small}),
    ]
    if machine.dtype is torch.bfloat16:
        ways.append(("LoRA beside bfloat16 weights", {"lora": True, "model": {"dtype": "bfloat16"}, **small}))
    if importlib.util.find_spec("bitsandbytes") is not None:
        ways.append(("LoRA beside 4-bit weights", {"lora": True, "model": {"quantization": "4bit"}, **small}))
    return ways


def _memory(
    facts: ModelFacts, machine: Machine, longest: int, contrasted: int, options: Mapping[str, Any]
) -> float:
    """Bytes that training takes at its peak."""
    held = {"dtype": 2.0, "quantization": BITS4}
    per_weight = next((held[option] for option in options.get("model", {})), 4.0)
    adapter = LoraOptions().rank * facts.linear
    trained = OPTIMIZER * adapter if options.get("lora") else (OPTIMIZER - per_weight) * facts.parameters
    number: int = machine.dtype.itemsize
    rows: int = options.get("batch", 8)
    tokens = max(rows * longest, contrasted)
    kept = facts.layers * (2 if options.get("checkpointing") else PER_STATE) + PER_STATE
    states = kept * facts.hidden * number * tokens
    logits = rows * longest * facts.vocabulary * (8 + number)  # and its gradient
    return per_weight * facts.parameters + trained + states + logits


def seconds(
    work: Work, sizes: Sizes, layer: float, batch: int, tokens: int, methods: int, speed: float
) -> float:
    """How long a run of base, `stl`, `stl_aug` and `dcr` takes.

    Args:
        work: What it goes through.
        sizes: How much of it.
        layer: The refined layer, as a share of all.
        batch: Contrasted prompts a step.
        tokens: Token cap of a reply.
        methods: How many methods are evaluated.
        speed: Prompt tokens a second, forward.
    """
    held = layer + (1 - layer) * BACKWARD
    training = BACKWARD * (work.examples + work.augmented) + held * work.examples
    refining = BACKWARD * layer * sizes.steps * batch * work.contrast
    evaluating = methods * work.tests * (OPENINGS * work.asked + GENERATED * tokens)
    return FIXED + PER_METHOD * methods + (training + refining + evaluating) / speed


def is_aligned(tried: Tried | None) -> bool:
    """Whether a model refuses toxic prompts as it is."""
    return tried is not None and tried.refused >= 0.5
