"""DCR: discernment via contrastive refinement (Lu et al., ICLR 2026, arXiv 2603.03323).

Refusal leaks from toxic to seemingly toxic prompts because the two look alike to the model: their gradients are
similar, so teaching it to refuse the one teaches it to refuse the other. DCR takes them apart first:

1. Refine. Contrastive learning on the hidden states of layer l; everything after layer l is frozen.
2. Align. The ordinary safety fine-tuning of STL, on the same examples. The first l layers are held, so that it cannot
   undo what stage 1 built; the paper does not hold them (`dcr_paper`).
"""

from typing import ClassVar

from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.stl import safety_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.training.contrastive import refine
from discernment.training.layer import found_layer
from discernment.training.supervised import align


class Dcr(Method):
    """Contrastive refinement, then safety fine-tuning."""

    name: ClassVar[str] = "dcr"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Refine the base model, then align it."""
        refinement = options.need_refine(self.name)
        refined = stage(
            "refine",
            refine,
            start=base,
            prompts=materials.need("contrast", self.name),
            options=refinement,
            validation=materials.contrast_validation,
            retained=materials.retained if refinement.retention else None,
            **watched(materials, options),
        )
        held = options.align.frozen_layers
        if held is None:
            held = refinement.layer if refinement.layer != "auto" else found_layer(refined.folder)
        return stage(
            "align",
            align,
            start=refined,
            examples=safety_mix(materials, self.name),
            options=options.align.model_copy(update={"frozen_layers": held}),
            validation=materials.validation,
            **watched(materials, options),
        )
