"""ACTOR: activation-based training of one layer (Dabas et al., ICML 2025, arXiv 2507.04250).

Of all methods here the closest to stage 1 of DCR: it too works on the states of one layer, without replies. It comes after
the safety fine-tuning instead of before it, and turns the states of what should be answered away from the direction in
which toxic prompts differ from benign ones.

It stands on `stl`, or on what a recipe names: one layer is trained so that states of toxic prompts go along the direction and
all others against it.
"""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.projection import ProjectionOptions, project


class Actor(Method):
    """Train one layer of an aligned model along and against the direction of refusal."""

    name: ClassVar[str] = "actor"
    on: ClassVar[str] = "stl"
    options_type: ClassVar[type[ProjectionOptions]] = ProjectionOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Train one layer of the aligned model."""
        own: ProjectionOptions = options.own or ProjectionOptions()
        contrast, general = materials.need("contrast", self.name), materials.need("general", self.name)
        return stage(
            "project",
            project,
            start=base,
            prompts=PromptSet.concatenate(
                [contrast, general.sample(own.benign, own.seed)], "contrast and benign"
            ),
            options=own,
            **watched(materials, options),
        )
