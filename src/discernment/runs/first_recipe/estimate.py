"""How a model can be trained on a machine: in which memory, in which time, by the estimates of `discern plan`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from discernment.evaluation.evaluate import EvaluateOptions
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.runs.first_recipe.circumstances import Machine, ModelFacts, Tried, gib
from discernment.runs.planning.estimate import Estimate, work_of
from discernment.runs.resources import resident
from discernment.training.contrastive import RefineOptions
from discernment.training.options import LoraOptions
from discernment.training.supervised import AlignOptions

USABLE = 0.9
"""Share of the free memory to plan with."""
BITS4 = 0.65
"""Bytes a weight in 4 bits with its scales, some of them being kept whole."""
FIXED, PER_METHOD = 40.0, 10.0
"""Seconds of a run and of each of its methods that depend on nothing here: imports, loading, the report."""
SPREAD = 2.5
"""How far a run may take longer than its estimate; on two cores with other work beside it took 1.9 times as long."""
SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)


class Way(NamedTuple):
    """How the weights are trained.

    Attributes:
        name: What it is called.
        needed: Bytes that the larger of both stages takes, by estimate.
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
    """What the stages of a first recipe are given.

    Attributes:
        examples: The examples of `stl`.
        augmented: Those of `stl_aug` and `dcr`.
        contrast: The prompts of stage 1.
        max_length: Tokens of an example; longer ones are cut.
        batch: Contrasted prompts a step.
        steps: Steps of stage 1.
    """

    examples: PromptSet
    augmented: PromptSet
    contrast: PromptSet
    max_length: int
    batch: int
    steps: int


def choose_way(spec: ModelSpec, chat: ChatFormat, machine: Machine, work: Work) -> Way:
    """The first way to train, the plainest first, that the free memory of the machine suffices for; else the smallest.

    Args:
        spec: The model.
        chat: Its chat format.
        machine: The machine.
        work: What it is trained on.
    """
    before: list[str] = []
    way = None
    for name, options in _ways(machine):
        way = Way(name=name, needed=0.0, fits=False, before=(*before,), **options)
        stages = (_refine(spec, chat, way, work, "auto"), _align(spec, chat, way, work.augmented, work))
        own = (resident() or 0) if machine.device == "cpu" else 0  # by now all that trains is imported
        needed = own + max(map(_memory, stages, [way] * len(stages)))
        way = way._replace(needed=needed, fits=needed <= USABLE * machine.free)
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


def _memory(stage: Estimate, way: Way) -> float:
    """Bytes that a stage takes at its worst moment."""
    return stage.memory - (stage.weights - BITS4 * stage.parameters if "quantization" in way.model else 0.0)


def _refine(spec: ModelSpec, chat: ChatFormat, way: Way, work: Work, layer: int | str) -> Estimate:
    options = {"layer": layer, "batch_size": work.batch, "steps": work.steps, **_common(way)}
    inputs = {"options": RefineOptions.model_validate(options), "prompts": work.contrast}
    return _estimate(_held(spec, way), chat, inputs)


def _align(
    spec: ModelSpec, chat: ChatFormat, way: Way, examples: PromptSet, work: Work, held: int = 0
) -> Estimate:
    options = AlignOptions(
        batch_size=way.batch,
        gradient_accumulation=way.accumulation,
        max_length=work.max_length,
        frozen_layers=held,
        train_embeddings=None if way.lora else False,
        **_common(way),
    )
    return _estimate(_held(spec, way), chat, {"options": options, "examples": examples})


def _common(way: Way) -> dict[str, Any]:
    return {
        "gradient_checkpointing": way.checkpointing,
        "lora": LoraOptions() if way.lora else None,
    }


def _held(spec: ModelSpec, way: Way) -> ModelSpec:
    """The model as it is looked at: of weights in 4 bits there are none without data, so they are looked at in bfloat16."""
    given = {"dtype": "bfloat16"} if "quantization" in way.model else way.model
    return spec.model_copy(update=dict(given))


def _estimate(spec: ModelSpec, chat: ChatFormat, inputs: Mapping[str, Any]) -> Estimate:
    work = work_of(inputs, spec, chat)
    assert work is not None
    return work.of(work.options)


class Asked(NamedTuple):
    """What an evaluation asks.

    Attributes:
        benchmarks: The test prompts.
        tokens: Token cap of a reply.
        methods: How many methods are asked.
    """

    benchmarks: Sequence[PromptSet]
    tokens: int
    methods: int


def seconds(
    spec: ModelSpec, facts: ModelFacts, way: Way, work: Work, asked: Asked, layer: int, speed: float
) -> tuple[float, float]:
    """How long a run takes that trains `stl`, `stl_aug` and `dcr`.

    Args:
        spec: The model.
        facts: What it is.
        way: How it is trained.
        work: On what.
        asked: What it is evaluated on.
        layer: The refined layer, which stage 2 holds.
        speed: Prompt tokens a second, forward.

    Returns:
        Seconds that stay, those of stage 2 among them, and those that shrink with `Sizes.scaled`.
    """
    chat = facts.chat
    how = EvaluateOptions(max_new_tokens=asked.tokens)
    reading = {"policy": PolicySpec.of(spec), "benchmarks": asked.benchmarks, "options": how}
    alignments = [
        _align(spec, chat, way, work.examples, work),
        _align(spec, chat, way, work.augmented, work),
        _align(spec, chat, way, work.augmented, work, held=0 if layer == facts.layers else layer),
    ]
    others = [_refine(spec, chat, way, work, layer), *[_estimate(spec, chat, reading)] * asked.methods]
    rate = 2 * (facts.parameters - facts.vocabulary * facts.hidden) * speed
    aligning, growing = (sum(stage.operations for stage in stages) / rate for stages in (alignments, others))
    return FIXED + PER_METHOD * asked.methods + aligning, growing


def in_minutes(lowest: float) -> str:
    """A time in words, such as `4 to 10 minutes`.

    Args:
        lowest: The estimate, in seconds.
    """
    low, high = (max(1, round(limit / 60)) for limit in (lowest, SPREAD * lowest))
    return f"{low} to {high} minutes"


def is_aligned(tried: Tried | None) -> bool:
    """Whether a model refuses toxic prompts as it is."""
    return tried is not None and tried.refused >= 0.5
