"""Reading everything that a recipe names, and finding mistakes before the first stage, not an hour later."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions, Probes
from discernment.diagnosis.proposition import halves
from discernment.errors import ModelError, RecipeError
from discernment.evaluation.attacks import Attacked, attack_benchmarks
from discernment.files import content_hash, read_json
from discernment.methods.method import Materials, Stage, find_method
from discernment.models.adapter_files import find_file
from discernment.models.loading import resolve
from discernment.models.model_spec import ModelSpec
from discernment.policies.engine import check_engine
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rejection import load_openings
from discernment.policies.served import ServedPolicy
from discernment.prompts import PromptSet
from discernment.prompts.catalogue import check_at_hand
from discernment.prompts.words import normalise
from discernment.ranks import check_alone, is_shared
from discernment.runs.built_in import sets_of
from discernment.runs.measures import MEASURES, Measure
from discernment.runs.recipe import MethodEntry, Recipe
from discernment.training.contrastive import RefineOptions
from discernment.training.options import OptimizerOptions
from discernment.training.supervised import AlignOptions
from discernment.training.trackers import check_trackers

TEXT_PARTS = {"text_config", "decoder", "generator"}
"""Under these keys a configuration of several models has that of its language model."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe names, read.

    Attributes:
        base: The policy that all methods start from.
        materials: The prompts that each method works with, by what tables call it.
        benchmarks: What every method is evaluated on.
        attacked: The same under attack.
        skipped: Why an attack of the recipe is not tried, by its name.
        measures: What is measured beside the verdicts.
        proposition: The prompts for Proposition 1; None if it is not to be measured.
        seen_in_training: How many prompts of a benchmark a training stage may see; benchmarks without any are left out.
        stages: The names of the stages of all methods, in their order; that of a measure is the measure's field.
    """

    base: PolicySpec
    materials: Mapping[str, Materials]
    benchmarks: Sequence[PromptSet]
    attacked: Sequence[Attacked]
    skipped: dict[str, str]
    measures: Sequence[Measure]
    proposition: PromptSet | None
    seen_in_training: dict[str, int]
    stages: Sequence[str] = ()

    def fingerprint(self, of_model: Callable[[ModelSpec], str]) -> str:
        """A hash of what is read: the base model, the prompts of each method, and the benchmarks.

        Args:
            of_model: Gives a hash of a model.
        """
        materials = {
            method: [getattr(own, part.name) for part in fields(own)]
            for method, own in self.materials.items()
        }
        prompts = {name: [s and s.fingerprint for s in sets] for name, sets in materials.items()}
        return content_hash(
            [self.base.fingerprint(of_model), prompts, [b.fingerprint for b in self.benchmarks]]
        )


def prepare(recipe: Recipe) -> Prepared:
    """Read all prompts, and go through all methods without running a stage.

    Raises:
        RecipeError: If a method lacks prompts, replies or options, a judge or an endpoint its key, or tasks or vLLM their extra;
            or if there is no such task, rule or tracker.
        ModelError: If the model has no such layer, or cannot be found, or that of a judge, or is behind an endpoint and
            would be trained.
        DataError: If a set cannot be read or is empty, there are no refusal openings for the language, too few probe
            prompts, too few for Proposition 1, too few of a label for kernel similarity, or no data for a task.
    """
    check_at_hand(sets_of(recipe.model_dump(mode="json")))
    check_trackers(recipe.track)
    check_engine(recipe.evaluate.engine)
    base = PolicySpec.of(recipe.model)
    materials = recipe.materials()
    asked = recipe.evaluate
    benchmarks = [b.load() for b in asked.sets]
    attacked, skipped = attack_benchmarks(asked.attacks, benchmarks, asked.translations)
    measures = [m for kind in MEASURES if (m := kind.asked(recipe, benchmarks)) is not None]
    _ = asked.judge.fingerprint
    if isinstance(asked.openings, str):
        load_openings(asked.openings)
    probes = next(iter(materials.values())).probes
    if probes is not None:
        Probes.choose(probes, DynamicsOptions())
    proposition = None
    if (plan := recipe.diagnose) is not None and plan.proposition is not None:
        proposition = plan.prompts_of(plan.proposition, "proposition")
        halves(proposition, recipe.seed)
    stage = _DryStage(base)
    for entry in recipe.methods:
        stage.owner = entry.label
        policy = build_steps(recipe, entry, base, materials, stage)
        if policy.model.is_served:
            ServedPolicy.load(policy)
        stage.names += ["evaluate", *("attack" for _ in attacked), *(m.field for m in measures)]
    seen = _seen_in_training(materials, [*benchmarks, *(s for m in measures for s in m.held_out)])
    return Prepared(
        base, materials, benchmarks, attacked, skipped, measures, proposition, seen, tuple(stage.names)
    )


def build_steps(
    recipe: Recipe, entry: MethodEntry, base: PolicySpec, materials: Mapping[str, Materials], stage: Stage
) -> PolicySpec:
    """Make a method's policy: first what it stands on, whose stages are those of any other method that has them.

    Args:
        recipe: The recipe.
        entry: One of its methods.
        base: The policy that all methods start from.
        materials: What `Recipe.materials` gives.
        stage: Runs a stage, or finds its result.

    Raises:
        RecipeError: If a method lacks prompts or options, or would have a second rule.
    """
    policy = base
    for step in recipe.steps(entry):
        method = find_method(step.method)
        options = replace(recipe.options(step), untrained=base)
        policy = method.build(policy, materials[step.label], options, stage)
    return policy


def _seen_in_training(materials: Mapping[str, Materials], held_out: Sequence[PromptSet]) -> dict[str, int]:
    names = Materials.__dataclass_fields__.keys() - {"probes"}  # which are looked at only
    # Methods share most sets; each is read once.
    trained = {
        id(s): s for own in materials.values() for name in names if (s := getattr(own, name)) is not None
    }
    training = {normalise(p.whole) for s in trained.values() for p in s}
    counts = {s.provenance.name: sum(normalise(p.whole) in training for p in s) for s in held_out}
    return {name: count for name, count in counts.items() if count}


class _DryStage:
    """A stage that only looks at what it is given."""

    owner = ""

    def __init__(self, base: PolicySpec) -> None:
        self.depth = _depth(base.model)
        self.names: list[str] = []

    def __call__(
        self, name: str, work: Callable[..., StageCost], *, start: PolicySpec, **inputs: Any
    ) -> PolicySpec:
        self.names.append(name)
        self._check_weights(name, {"start": start, **inputs})
        if isinstance(inputs.get("options"), OptimizerOptions) and not is_shared(work):
            check_alone(f"The training of {self.owner}")
        self._check(inputs)
        rule: RuleSpec | None = inputs.get("rule")
        if rule is None:
            return start.without_rule(f"The stage {name!r} of {self.owner}")
        return start.with_rule(rule)

    def run(self, name: str, work: Callable[..., StageCost], inputs: Mapping[str, Any]) -> Path:
        """A directory that is not there."""
        self.names.append(name)
        self._check_weights(name, inputs)
        return Path(name)

    def _check_weights(self, name: str, inputs: Mapping[str, Any]) -> None:
        for policy in inputs.values():
            if isinstance(policy, PolicySpec):
                policy.with_weights(f"The stage {name!r} of {self.owner}")

    def _check(self, inputs: Mapping[str, Any]) -> None:
        options = inputs.get("options")
        if isinstance(options, OptimizerOptions):
            options.share()
        if isinstance(layer := getattr(options, "layer", None), int):
            self._check_depth("layer", layer)
        if isinstance(options, RefineOptions):
            options.check_prompts(inputs["prompts"], inputs.get("retained"))
        if isinstance(options, AlignOptions):
            self._check_depth("frozen_layers", options.held)
            if self.depth is not None and options.trains_nothing(self.depth):
                raise RecipeError(
                    f"{self.owner} holds all {options.held} layers in stage 2, which leaves nothing to train; refine fewer layers "
                    "or set `align: {frozen_layers: 0}`."
                )
            examples: PromptSet = inputs["examples"]
            silent = next((p for p in examples if not p.response), None)
            if silent is not None:
                raise RecipeError(
                    f"The prompt {silent.id!r} has no response, and {self.owner} trains on it; choose sets with "
                    "responses for the alignment."
                )
        rule = inputs.get("rule")
        for option in ("first_layer", "last_layer"):
            for layer in (rule and rule.options.get(option), getattr(options, option, None)):
                if layer is not None:
                    self._check_depth(option, layer)

    def _check_depth(self, option: str, layer: int) -> None:
        if self.depth is not None and layer > self.depth:
            raise ModelError(
                f"Layer {layer} is out of range: the model has {self.depth} layers, counted from 1; change "
                f"`{option}` of {self.owner}."
            )


def _depth(spec: ModelSpec) -> int | None:
    where = None if spec.is_served else resolve(spec)
    if where is None:
        return None
    try:
        file = find_file(where, "config.json", spec.revision)
        said = read_json(file) if file is not None else {}
        # What makes a configuration of it also loads what runs models, which takes longer than all else here.
        if isinstance(said.get("num_hidden_layers"), int) and not said.keys() & TEXT_PARTS:
            return int(said["num_hidden_layers"])
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(
            where, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except Exception:  # custom code raises what it likes; loading the model itself says it better
        return None
    depth: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    return depth
