"""DeRTa: decoupled refusal training (Yuan et al., ACL 2025, arXiv 2407.09121).

A model that is to refuse only at the first token cannot turn back behind a harmful beginning. DeRTa trains it to begin a
refusal anywhere in a harmful reply. It is a method for safety; it does nothing against over-refusal.

1. Replies. The base model replies to the toxic training prompts; refusals among the replies are left out.
2. Align. The mix of `stl`, with these replies in the rows of the toxic prompts; they are read and never learned.
"""

from typing import ClassVar

from discernment.methods.harmful import harmful_replies
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.stl import safety_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.training.derta import DertaOptions, align_decoupled


class Derta(Method):
    """Harmful replies of the base model, then fine-tuning that refuses at every point of them."""

    name: ClassVar[str] = "derta"
    options_type: ClassVar[type[DertaOptions]] = DertaOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Have the harmful replies written, then align the base model."""
        own: DertaOptions = options.own or DertaOptions()
        writer = options.writer(base)
        _, replies = harmful_replies(writer, materials, self.name, own.harmful, options.align.seed, stage)
        return stage(
            "align",
            align_decoupled,
            start=base,
            examples=safety_mix(materials, self.name),
            harmful=replies,
            options=options.align,
            own=own,
            validation=materials.validation,
            **watched(materials, options),
        )
