"""What a method is, and what it gets to work with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.plugins import announced
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rule import find_rule
from discernment.prompts import PromptSet
from discernment.training.contrastive import RefineOptions
from discernment.training.supervised import AlignOptions

GROUP = "discernment.methods"


@dataclass(frozen=True)
class Materials:
    """The prompts that a recipe sets aside for training. None of them is used for the final evaluation.

    Attributes:
        general: Benign instructions with answers.
        safety: Toxic prompts with safe refusals.
        augmentation: Seemingly toxic prompts with helpful answers.
        contrast: Toxic and seemingly toxic prompts for stage 1; replies are not needed.
        contrast_validation: The same from the validation split: by these stage 1 stops.
        retained: Benign prompts whose representations stage 1 should leave alone.
        validation: Prompts with replies whose loss is logged in stage 2.
        probes: Prompts that are watched through the training; nothing is learned from them.
    """

    general: PromptSet | None = None
    safety: PromptSet | None = None
    augmentation: PromptSet | None = None
    contrast: PromptSet | None = None
    contrast_validation: PromptSet | None = None
    retained: PromptSet | None = None
    validation: PromptSet | None = None
    probes: PromptSet | None = None

    def need(self, name: str, method: str) -> PromptSet:
        """The prompts called `name`.

        Raises:
            RecipeError: If the recipe has none.
        """
        found: PromptSet | None = getattr(self, name)
        if found is None:
            raise RecipeError(
                f"The method {method!r} needs prompts under `data.{name}`, and the recipe has none there."
            )
        return found


@dataclass(frozen=True)
class MethodOptions:
    """Options of the stages, as the recipe gives them for one method.

    Attributes:
        align: Options of stage 2.
        refine: Options of stage 1; None if the recipe has none.
        dynamics: How the probe prompts are watched through the training.
        rule: Options of the rule that the method acts by.
        own: Options of the method's own, of its `options_type`; None stands for their defaults.
        untrained: The recipe's own model, which may be another than what the method stands on: by it replies are written that
            an aligned model would refuse; None where it is not known.
    """

    align: AlignOptions
    refine: RefineOptions | None = None
    dynamics: DynamicsOptions | None = None
    rule: Mapping[str, Any] = field(default_factory=dict)
    own: Any = None
    untrained: PolicySpec | None = None

    def writer(self, base: PolicySpec) -> PolicySpec:
        """Who writes replies that an aligned model would refuse: the recipe's own model, else what the method stands on."""
        return self.untrained or base

    def rule_called(self, name: str) -> RuleSpec:
        """The rule of that name with these options, which are checked here: before the first stage.

        Raises:
            RecipeError: If there is no such rule, or an option is wrong.
        """
        find_rule(name, self.rule)
        return RuleSpec(name=name, options=dict(self.rule))

    def need_refine(self, method: str) -> RefineOptions:
        """The options of stage 1.

        Raises:
            RecipeError: If the recipe has none.
        """
        if self.refine is None:
            raise RecipeError(
                f"`refine.layer` is missing; name the layer that {method} trains up to in stage 1."
            )
        return self.refine


def watched(materials: Materials, options: MethodOptions) -> dict[str, Any]:
    """Arguments of a stage that watches the probe prompts; none where the recipe has no probe prompts."""
    return {} if materials.probes is None else {"probes": materials.probes, "dynamics": options.dynamics}


class Stage(Protocol):
    """Runs one stage and keeps its result, or finds the result of an earlier run."""

    def __call__(
        self, name: str, work: Callable[..., StageCost], *, start: PolicySpec, **inputs: Any
    ) -> PolicySpec:
        """Call `work(start=..., out=..., **inputs)`, which leaves a policy in `out` (`PolicySpec.write`).

        Args:
            name: What to call the stage, e.g. `align`.
            work: The stage's function: it trains, merges weights, computes a rule's tensors.
            start: The policy that the stage starts from.
            **inputs: Prompt sets and options; the stage is done again only when one of them changes. A stage that
                leaves `start` with a rule takes it as `rule`, a `RuleSpec`: what cannot act by it is then found before
                the first stage.

        Returns:
            The policy that came out.
        """

    def run(self, name: str, work: Callable[..., StageCost], inputs: Mapping[str, Any]) -> Path:
        """Call `work(out=..., **inputs)`, which leaves something else than a policy in `out`, such as texts.

        Args:
            name: What to call the stage, e.g. `replies`.
            work: The stage's function.
            inputs: Policies, prompt sets and options, as above.

        Returns:
            The stage's directory, which another stage may take as an input. It need not be there yet while `build` runs
            to look for mistakes: what lies in it is read by stages only.
        """


class Method(ABC):
    """A named way to get a policy from a base model.

    A new method subclasses this and is announced by the entry point group `discernment.methods`.

    Attributes:
        name: What recipes call it.
        on: The method that it stands on, for one that does not start from the base model. A recipe may name another with
            `on`, for any method; `build` is given that one's policy as `base`.
        options_type: The options of its own, which a recipe gives under `options`; without a field, it takes none.
        acts_by_rule: Whether its policy acts by a rule, whose options a recipe gives under `rule`.
    """

    name: ClassVar[str]
    on: ClassVar[str | None] = None
    options_type: ClassVar[type[Frozen]] = Frozen
    acts_by_rule: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Make the method's policy.

        Args:
            base: The base model, or the policy of what the method stands on.
            materials: Prompts to train on.
            options: Options of the stages.
            stage: Runs a stage, or finds its result.

        Raises:
            RecipeError: If the materials lack what the method needs.
        """


def known_methods() -> list[str]:
    """Names of all installed methods, sorted."""
    return sorted({entry.name for entry in announced(GROUP)})


def find_method(name: str) -> Method:
    """The method called `name`.

    Raises:
        RecipeError: If there is none, or its plug-in cannot be loaded.
    """
    entries = list(announced(GROUP).select(name=name))
    if not entries:
        raise RecipeError(f"There is no method {name!r}; known: {', '.join(known_methods())}.")
    try:
        method: Method = entries[0].load()()
    except Exception as error:
        raise RecipeError(f"The method {name!r} ({entries[0].value}) cannot be loaded: {error}.") from error
    return method
