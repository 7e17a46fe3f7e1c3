"""DCR: discernment via contrastive refinement (Lu et al., ICLR 2026, arXiv 2603.03323).

Refusal leaks from toxic to seemingly toxic prompts because the two look alike to the model: their gradients are
similar, so teaching it to refuse the one teaches it to refuse the other. DCR takes them apart first:

1. Refine. Contrastive learning on the hidden states of layer l; everything after layer l is frozen.
2. Align. The ordinary safety fine-tuning of STL, on the same examples. The first l layers are held, so that it cannot
   undo what stage 1 built; the paper does not hold them (`dcr_paper`).

Seeds of stage 1 differ much. It can be done several times, and the mean of the models, or the best of them, be aligned.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from discernment.cost import StageCost
from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.stl import augmented_mix, safety_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.layer import found_layer
from discernment.training.options import LARGEST_SEED
from discernment.training.restarts import average, choose
from discernment.training.supervised import align

SEEDS_APART = 1000
"""How far the seeds of restarts are apart, so that those of one seed are not those of the next."""


class DcrOptions(Frozen):
    """Options of DCR beside those of its stages."""

    restarts: int = Field(1, ge=1, description="How often stage 1 is done, each time with another seed.")
    combine: Literal["mean", "best"] = Field(
        "mean",
        description="What is aligned of several: the mean of their weights, or the one that did best on `contrast_validation`.",
    )
    augmented: bool = Field(
        False,
        description="Whether stage 2 also sees the seemingly toxic prompts of `augmentation` with their answers, as `stl_aug` "
        "does.",
    )


class Dcr(Method):
    """Contrastive refinement, then safety fine-tuning."""

    name: ClassVar[str] = "dcr"
    options_type: ClassVar[type[DcrOptions]] = DcrOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Refine the base model, then align it."""
        own = options.own or self.options_type()
        refinement = options.need_refine(self.name)
        if own.restarts > 1:
            _check_can_be_combined(own, refinement, materials)
        refined = [
            stage(
                "refine",
                refine,
                start=base,
                prompts=materials.need("contrast", self.name),
                options=refinement.model_copy(update={"seed": _seed(refinement.seed, number)}),
                validation=materials.contrast_validation,
                retained=materials.retained if refinement.retention else None,
                **(watched(materials, options) if number == 0 else {}),
            )
            for number in range(own.restarts)
        ]
        held = options.align.frozen_layers
        if held is None:
            held = refinement.layer if refinement.layer != "auto" else found_layer(refined[0].folder)
        combined = _combined(refined, own, refinement, stage)
        work, more = self.fine_tuning(options.writer(base), materials, own, options.align.seed, stage)
        return stage(
            "align",
            work,
            start=combined,
            examples=(augmented_mix if own.augmented else safety_mix)(materials, self.name),
            options=options.align.model_copy(update={"frozen_layers": held}),
            validation=materials.validation,
            **more,
            **watched(materials, options),
        )

    def fine_tuning(
        self, untrained: PolicySpec, materials: Materials, own: Any, seed: int, stage: Stage
    ) -> tuple[Callable[..., StageCost], dict[str, Any]]:
        """What stage 2 is done by, and what it takes beside the inputs of ordinary fine-tuning.

        Args:
            untrained: The base model.
            materials: Prompts to train on.
            own: The method's own options.
            seed: Of stage 2.
            stage: Runs a stage, or finds its result.
        """
        return align, {}


def _seed(seed: int, number: int) -> int:
    """The seed of a restart; the first has the recipe's."""
    return (seed + number * SEEDS_APART) % (LARGEST_SEED + 1)


def _combined(
    refined: list[PolicySpec], own: DcrOptions, refinement: RefineOptions, stage: Stage
) -> PolicySpec:
    """What is aligned of what the restarts left."""
    first, *others = refined
    if not others:
        return first
    if own.combine == "mean":
        return stage("average", average, start=first, others=others)
    return stage("choose", choose, start=first, others=others, by=refinement.stopping)


def _check_can_be_combined(own: DcrOptions, refinement: RefineOptions, materials: Materials) -> None:
    if own.combine == "best" and materials.contrast_validation is None:
        raise RecipeError(
            "`combine: best` needs prompts under `data.contrast_validation`, by which the best restart is known; name some, "
            "or use `combine: mean`."
        )
    if own.combine == "best" and refinement.average_last:
        raise RecipeError(
            "Validation prompts are looked at with the weights of a step, which `average_last` does not leave, so the best "
            "restart is not known; use `combine: mean`, or leave `average_last` out."
        )
    if own.combine == "mean" and refinement.lora is not None and refinement.lora.keep == "adapter":
        raise RecipeError(
            "Of adapters alone there is no mean; set `refine.lora.keep` to `merged` or `both`, or `combine` to `best`."
        )
