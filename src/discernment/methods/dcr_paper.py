"""DCR as published (Lu et al., ICLR 2026, arXiv 2603.03323), as far as the text at hand says.

Of stage 1 the recipe chooses the layer, Circle's margin and scale, the optimizer and when to stop; the loss, what it
sees and the batches are fixed here. Stage 2 is the safety fine-tuning of `stl`, with no layer held; the paper does it
through LoRA (`align: {lora: {}}`). docs/study.md sets it beside `dcr`.
"""

from dataclasses import replace
from typing import ClassVar

from discernment.methods.dcr import Dcr
from discernment.methods.method import Materials, MethodOptions, Stage
from discernment.policies.policy_spec import PolicySpec
from discernment.training.contrastive import RefineOptions
from discernment.training.options import LossOptions


class DcrPaper(Dcr):
    """Circle loss on plain cosines, labels in equal parts without matched partners, nothing held in stage 2."""

    name: ClassVar[str] = "dcr_paper"

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Refine the base model, then align it."""
        published = replace(
            options,
            align=options.align.model_copy(update={"frozen_layers": 0}),
            refine=_published(options.need_refine(self.name)),
        )
        return super().build(base, materials, published, stage)


def _published(options: RefineOptions) -> RefineOptions:
    loss = LossOptions(
        name="circle",
        margin=options.loss.margin,
        gamma=options.loss.gamma,
        pooling=options.loss.pooling,
        centre=False,
    )
    fixed = {"loss": loss, "labels": "all", "label_weights": {}, "matched": False, "retention": 0.0}
    return options.model_copy(update=fixed)
