"""STL-aug: STL with seemingly toxic prompts and helpful answers in the mix (a baseline of Lu et al. 2026)."""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.stl import augmented_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.training.supervised import align


class StlAug(Method):
    """Fine-tune as STL does, with seemingly toxic prompts that are answered among the examples."""

    name: ClassVar[str] = "stl_aug"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Align the base model on the augmented mix."""
        return stage(
            "align",
            align,
            start=base,
            examples=augmented_mix(materials, self.name),
            options=options.align,
            validation=materials.validation,
            **watched(materials, options),
        )
