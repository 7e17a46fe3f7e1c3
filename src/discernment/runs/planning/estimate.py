"""What a stage will take: memory from a step without data, time from its operations and a rate that is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from discernment.evaluation.evaluate import EvaluateOptions
from discernment.frozen import Frozen
from discernment.models.batch import common_prefix
from discernment.models.chat import ChatFormat
from discernment.models.loading import load_config
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import trains_mixed
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.rejection import OpeningTrie, load_openings
from discernment.policies.rule import DecodingRule, find_rule
from discernment.prompts import PromptSet
from discernment.runs.planning.steps import (
    Batch,
    StepCost,
    align_step,
    depth_of,
    reading,
    refine_step,
)
from discernment.training.contrastive import RefineOptions
from discernment.training.derta import DertaOptions
from discernment.training.held import LIMIT
from discernment.training.options import LoraOptions, OptimizerOptions
from discernment.training.preference import PreferenceOptions
from discernment.training.supervised import AlignOptions

GENERATED = 3.0
"""How long a generated token takes against one that is read, in batches."""
Change = tuple[str, Any]
"""What to write into a recipe, and the options that come of it."""
_steps: dict[str, StepCost] = {}


class Estimate(Frozen):
    """What a stage is expected to take, in bytes but for what is named otherwise.

    Attributes:
        parameters: Parameters of the model.
        trained: Parameters that are trained; 0 where nothing is.
        weights: The model's weights.
        gradients: Their gradients.
        optimizer: The optimizer's states.
        activations: The rest of the worst moment of a step: activations, logits, casts; of an evaluation, also keys and values.
        held: States of layers that are not trained, kept for all rows.
        operations: Floating-point operations of the stage; those of generated tokens count `GENERATED` times.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    held: int
    operations: float

    @property
    def memory(self) -> int:
        """All that tensors hold at the worst moment."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.held


class Work(NamedTuple):
    """A stage that can be estimated: its options, and how its estimate follows from them."""

    options: Any
    of: Callable[[Any], Estimate]


def work_of(inputs: Mapping[str, Any], spec: ModelSpec, chat: ChatFormat) -> Work | None:
    """How to estimate a stage; None of a kind of stage that is not known here.

    Args:
        inputs: What the stage's function is given.
        spec: The model that all stages start from.
        chat: Its chat format.
    """
    options = inputs.get("options")
    policy = inputs.get("policy")
    if "replies" in inputs:  # of an evaluation, which are judged again
        return None
    if spec.quantization is not None or (isinstance(policy, PolicySpec) and policy.model.is_served):
        return None
    if isinstance(options, RefineOptions):
        return Work(options, lambda o: _of_refinement(o, inputs, spec, chat))
    if isinstance(options, AlignOptions) and isinstance(inputs.get("examples"), PromptSet):
        return Work(options, lambda o: _of_alignment(o, inputs, spec, chat))
    if isinstance(options, EvaluateOptions) and "benchmarks" in inputs and options.engine != "vllm":
        # Evaluated again for flips, in batches of another size.
        again = {"batch_size": inputs["batch_size"]} if "batch_size" in inputs else {}
        return Work(options.model_copy(update=again), lambda o: _of_evaluation(o, inputs, spec, chat))
    return None


def smaller(options: Any) -> list[Change]:
    """Options that come to the same training, nearly, in less memory, each with what to write into the recipe.

    Args:
        options: Those of the stage.
    """
    if not isinstance(options, OptimizerOptions):
        half = max(1, options.batch_size // 4)
        return [(f"batch_size: {half}", options.model_copy(update={"batch_size": half}))]
    found: list[tuple[str, dict[str, Any]]] = []
    if isinstance(options, RefineOptions):
        size = max(1, options.rows_at_once // 4)
        found.append((f"micro_batch_size: {size}", {"micro_batch_size": size}))
    elif options.batch_size > 1:
        size, more = max(1, options.batch_size // 4), options.gradient_accumulation * 4
        found.append(
            (
                f"batch_size: {size}, gradient_accumulation: {more}",
                {"batch_size": size, "gradient_accumulation": more},
            )
        )
    if not options.gradient_checkpointing:
        found.append(("gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if options.lora is None and options.optim != "adafactor":
        found.append(("optim: adafactor", {"optim": "adafactor"}))
    if options.lora is None and not getattr(options, "train_embeddings", False):
        found.append(("lora: {rank: 16}", {"lora": LoraOptions()}))
    made = [(words, options.model_copy(update=change)) for words, change in found]
    together = [(words, change) for words, change in found if "optim" not in change]
    words = ", ".join(said for said, _ in together)
    changes = {key: value for _, change in together for key, value in change.items()}
    return [*made, (words, options.model_copy(update=changes))]


def _of_refinement(
    options: RefineOptions, inputs: Mapping[str, Any], spec: ModelSpec, chat: ChatFormat
) -> Estimate:
    rows = [chat.encode(p.asked) for p in inputs["prompts"]]
    kept = inputs.get("retained")
    extra = [chat.encode(p.asked) for p in kept] if kept is not None else []
    depth = depth_of(spec)
    layer = depth if options.layer == "auto" else options.layer
    drawn = options.batch_size + (options.retention_batch if extra else 0)
    at_once = min(drawn, options.rows_at_once) if options.micro_batch_size else drawn
    lengths = [len(row) for row in (*rows, *extra)]
    shared = 0 if options.gradient_checkpointing else len(common_prefix([*rows, *extra]))
    step = _once(refine_step, spec, _for_memory(options), layer, Batch(at_once, max(lengths), shared))
    again = 4 / 3 if options.micro_batch_size else 1.0
    share = _mean(lengths) / max(lengths) * again * drawn / at_once
    steps = options.steps * options.gradient_accumulation
    states = sum(lengths) * _hidden(spec) * (2 if trains_mixed(spec) else 4) if options.first_layer else 0
    means = 4 * step.trained if options.average_last else 0
    return _estimate(step, steps * share * step.operations, states, means)


def _of_alignment(
    options: AlignOptions, inputs: Mapping[str, Any], spec: ModelSpec, chat: ChatFormat
) -> Estimate:
    sides = 2 if isinstance(options, PreferenceOptions) else 1
    own = inputs.get("own")
    rows = []
    for example in inputs["examples"]:
        asked = len(chat.encode(example.asked))
        reply = len(chat.encode_reply(example.asked, example.response)) if example.response else 0
        replies = [reply]
        if isinstance(own, DertaOptions) and example.label.should_refuse:
            # As if all harmful replies went to their cap; a refusal begins within one, on average in its middle.
            replies = [reply + own.harmful.max_tokens // 2, own.harmful.max_tokens]
        lengths = [min(asked + tokens, options.max_length) for tokens in replies]
        rows += [(length, length - asked) for length in lengths]
    rows.sort(reverse=True)
    top = rows[: options.batch_size]
    batch = Batch(options.batch_size * sides, top[0][0], 0, sides * sum(max(0, reply) for _, reply in top))
    step = _once(align_step, spec, _for_memory(options), batch)
    lengths = [length for length, _ in rows]
    share = _mean(lengths) / max(lengths)
    steps = math.ceil(options.epochs * len(rows) / options.batch_size)
    kept = options.held and options.epochs > 1
    states = sum(lengths) * _hidden(spec) * (2 if trains_mixed(spec) else 4) if kept else 0
    return _estimate(step, steps * share * step.operations, states)


def _of_evaluation(
    options: EvaluateOptions, inputs: Mapping[str, Any], spec: ModelSpec, chat: ChatFormat
) -> Estimate:
    prompts = [p.asked for benchmark in inputs["benchmarks"] for p in benchmark]
    rows = [chat.encode(asked) for asked in prompts]
    lengths = sorted((len(row) for row in rows), reverse=True)
    named = options.openings
    nodes = 1
    if options.rejection:
        openings = load_openings(named) if isinstance(named, str) else named
        nodes = len(OpeningTrie.from_openings(openings, chat).nodes)
    at_once, shared = min(options.batch_size, len(rows)), len(common_prefix(rows))
    contexts = _contexts(inputs["policy"], chat, prompts[0])
    read = at_once * contexts
    behind = max(nodes - 1, options.max_new_tokens)
    step = _once(reading, spec, Batch(read, lengths[0] + behind, shared, read * nodes))
    passes = math.ceil(len(rows) / at_once) * _mean(lengths) / lengths[0]
    draws = options.sampling.n if options.sampling else 1
    replies = GENERATED * 2.0 * step.parameters * len(rows) * contexts * options.max_new_tokens * draws
    return _estimate(step, passes * step.operations + replies, 0)


def _contexts(policy: PolicySpec, chat: ChatFormat, asked: Any) -> int:
    if policy.rule is None:
        return 1
    rule = find_rule(policy.rule.name, policy.rule.options)
    return len(rule.contexts(chat, asked)) if isinstance(rule, DecodingRule) else 1


def _for_memory(options: Any) -> Any:
    """Options without what a step's memory does not depend on: steps that are alike are looked at once."""
    kind = RefineOptions if isinstance(options, RefineOptions) else AlignOptions
    alike: dict[str, Any] = {
        "seed": 0,
        "learning_rate": 1.0,
        "gradient_accumulation": 1,
        "checkpoint_every": None,
    }
    alike |= {"steps": 1, "average_last": 0} if kind is RefineOptions else {"epochs": 1.0}
    return kind.model_validate({**options.model_dump(include=set(kind.model_fields)), **alike})


def _once(work: Callable[..., StepCost], *given: Any) -> StepCost:
    key = repr((work.__name__, given))
    if key not in _steps:
        _steps[key] = work(*given)
    return _steps[key]


def _estimate(step: StepCost, operations: float, states: int, means: int = 0) -> Estimate:
    return Estimate(
        parameters=step.parameters,
        trained=step.trained,
        weights=step.weights,
        gradients=step.gradients,
        optimizer=step.optimizer,
        activations=step.activations,
        held=(states if states <= LIMIT else 0) + means,  # more states lie in a file
        operations=operations,
    )


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths)


def _hidden(spec: ModelSpec) -> int:
    hidden: int = load_config(spec).get_text_config().hidden_size
    return hidden
