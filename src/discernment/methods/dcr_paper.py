"""DCR as published (Lu et al., ICLR 2026, arXiv 2603.03323), as far as the text at hand says.

Of stage 1 the recipe chooses the layer, the optimizer and when to stop; what the paper fixes is fixed here. Stage 2 is
the unchanged safety fine-tuning. `dcr` departs from it where that was measured to be better (docs/study.md).
"""

from __future__ import annotations

from typing import ClassVar

from discernment.methods.dcr import Dcr
from discernment.methods.method import Materials, MethodOptions, Stage
from discernment.models.spec import ModelSpec
from discernment.refinement.losses import LossOptions
from discernment.refinement.trainer import RefineOptions

__all__ = ["DcrPaper"]


class DcrPaper(Dcr):
    """Circle loss on plain cosines, batches that are balanced by label alone, nothing held in stage 2."""

    name: ClassVar[str] = "dcr_paper"

    def build(self, base: ModelSpec, materials: Materials, options: MethodOptions, stage: Stage) -> ModelSpec:
        """Refine the base model, then align it."""
        published = MethodOptions(
            align=options.align.model_copy(update={"frozen_layers": 0}),
            refine=_published(options.need_refine(self.name)),
            dynamics=options.dynamics,
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
    return options.model_copy(update={"loss": loss, "labels": "all", "matched": False, "retention": 0.0})
