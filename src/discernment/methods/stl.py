"""STL: ordinary supervised safety fine-tuning (Bianchi et al. 2023, arXiv 2309.07875)."""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.supervised import align


class Stl(Method):
    """Fine-tune on general instructions and on toxic prompts with safe refusals."""

    name: ClassVar[str] = "stl"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Align the base model."""
        return stage(
            "align",
            align,
            start=base,
            examples=safety_mix(materials, self.name),
            options=options.align,
            validation=materials.validation,
            **watched(materials, options),
        )


def safety_mix(materials: Materials, method: str) -> PromptSet:
    """General instructions and toxic prompts with refusals: what every method here is aligned on."""
    return PromptSet.concatenate(
        [materials.need("general", method), materials.need("safety", method)], "safety mix"
    )


def augmented_mix(materials: Materials, method: str) -> PromptSet:
    """The safety mix, and seemingly toxic prompts with helpful answers."""
    return PromptSet.concatenate(
        [safety_mix(materials, method), materials.need("augmentation", method)], "augmented safety mix"
    )
