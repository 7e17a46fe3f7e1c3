"""Finding mistakes before the first stage, not an hour later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoConfig

from discernment.cost import StageCost
from discernment.diagnosis.diagnose import check_prompts
from discernment.diagnosis.dynamics import DynamicsOptions, Probes
from discernment.diagnosis.proposition import halves
from discernment.errors import ModelError, RecipeError
from discernment.evaluation.harness import Tasks
from discernment.methods.method import Materials, find_method
from discernment.models.loading import resolve
from discernment.models.model_spec import ModelSpec
from discernment.policies.rejection import load_openings
from discernment.prompts import PromptSet
from discernment.runs.recipe import Recipe
from discernment.training.contrastive import RefineOptions
from discernment.training.supervised import AlignOptions

__all__ = ["rehearse"]


def rehearse(recipe: Recipe, materials: Mapping[str, Materials]) -> None:
    """Go through all methods without running a stage.

    Args:
        recipe: The recipe.
        materials: The prompts of each method.

    Raises:
        RecipeError: If a method lacks prompts, replies or options, a judge its key, or tasks their extra; or if
            there is no such task.
        ModelError: If the model has no such layer, or cannot be found, or that of a judge.
        DataError: If there are no refusal openings for the language, or too few probe prompts, too few for
            Proposition 1, too few of a label for kernel similarity, or no data for a task.
    """
    _ = recipe.evaluate.judge.fingerprint
    if isinstance(recipe.evaluate.openings, str):
        load_openings(recipe.evaluate.openings)
    if recipe.evaluate.tasks:
        Tasks(tuple(recipe.evaluate.tasks)).check()
    probes = next(iter(materials.values())).probes
    if probes is not None:
        Probes.choose(probes, DynamicsOptions())
    plan = recipe.diagnose
    if plan is not None and (proposition := plan.proposition_prompts()) is not None:
        halves(proposition, recipe.seed)
    if plan is not None and (kernel := plan.kernel_prompts()) is not None:
        check_prompts(kernel)
    stage = _DryStage(recipe)
    for entry in recipe.methods:
        stage.owner = entry.label
        find_method(entry.method).build(recipe.model, materials[entry.label], recipe.options(entry), stage)


class _DryStage:
    """A stage that only looks at what it is given."""

    owner = ""

    def __init__(self, recipe: Recipe) -> None:
        self.depth = _depth(recipe.model)

    def __call__(
        self, name: str, work: Callable[..., StageCost], *, model: ModelSpec, **inputs: Any
    ) -> ModelSpec:
        options = inputs.get("options")
        if isinstance(options, RefineOptions) and options.layer != "auto":
            self._check_depth("layer", options.layer)
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
        return model

    def _check_depth(self, option: str, layer: int) -> None:
        if self.depth is not None and layer > self.depth:
            raise ModelError(
                f"Layer {layer} is out of range: the model has {self.depth} layers, counted from 1; change "
                f"`{option}` of {self.owner}."
            )


def _depth(spec: ModelSpec) -> int | None:
    try:
        config = AutoConfig.from_pretrained(
            resolve(spec), revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError):  # loading the model itself says it better
        return None
    depth: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    return depth
