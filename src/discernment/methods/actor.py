"""ACTOR: activation-based training of one layer (Dabas et al., ICML 2025, arXiv 2507.04250).

Of all methods here the closest to stage 1 of DCR: it too works on the states of one layer, without replies. It comes after
the safety fine-tuning instead of before it, and turns the states of what should be answered away from the direction in
which toxic prompts differ from benign ones.

1. Align, as `stl` does.
2. Project. One layer is trained so that states of toxic prompts go along the direction and all others against it.
"""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.stl import Stl
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.projection import ProjectionOptions, project


class Actor(Method):
    """Align as STL does, then train one layer along and against the direction of refusal."""

    name: ClassVar[str] = "actor"
    options_type: ClassVar[type[ProjectionOptions]] = ProjectionOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Align the base model, then train one layer of it."""
        own: ProjectionOptions = options.own or ProjectionOptions()
        contrast, general = materials.need("contrast", self.name), materials.need("general", self.name)
        return stage(
            "project",
            project,
            start=Stl().build(base, materials, options, stage),
            prompts=PromptSet.concatenate(
                [contrast, general.sample(own.benign, own.seed)], "contrast and benign"
            ),
            options=own,
            **watched(materials, options),
        )
