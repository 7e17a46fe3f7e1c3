"""DPO: a model that is aligned already learns from pairs of replies (Rafailov et al., NeurIPS 2023, arXiv 2305.18290).

1. Replies. The aligned model replies to seemingly toxic prompts: where it refuses, an answer is preferred to its refusal. The
   base model replies to toxic prompts: the safe refusal is preferred to what it says. Where a seemingly toxic prompt has no
   response, the base model answers it.
2. Prefer. DPO on these pairs. For toxic prompts alone it is a baseline of DeRTa (arXiv 2407.09121), for both kinds the
   second step of POROver (arXiv 2410.12999).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from discernment.errors import RecipeError
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.sides import seemingly_toxic
from discernment.methods.stl import safety_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet
from discernment.training.preference import PreferenceOptions, prefer
from discernment.training.replies import ReplyOptions, write_replies


class DpoOptions(PreferenceOptions):
    """Options of `dpo`."""

    harmful: ReplyOptions = Field(
        default_factory=ReplyOptions, description="How the base model writes the replies to toxic prompts."
    )


class Dpo(Method):
    """Train an aligned model on pairs: answers before its refusals, and refusals before harmful replies."""

    name: ClassVar[str] = "dpo"
    on: ClassVar[str] = "stl"
    options_type: ClassVar[type[DpoOptions]] = DpoOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Have the replies written, then train on the pairs that they make."""
        own: DpoOptions = options.own or DpoOptions()
        base = base.without_rule("The training on pairs")
        toxic = safety_mix(materials, self.name).with_label(Label.TOXIC)
        seemingly = seemingly_toxic(materials, self.name)
        writer = options.writer(base)
        seed = options.align.seed

        def replies(start: PolicySpec, prompts: PromptSet, how: ReplyOptions) -> Path:
            asked = {"start": start, "prompts": prompts, "options": how, "seed": seed}
            return stage.run("replies", write_replies, asked)

        silent = [p for p in seemingly if not p.response]
        return stage(
            "prefer",
            prefer,
            start=base,
            **on_pairs(toxic, seemingly, own, options),
            refusals=replies(base, seemingly, own.written),
            answers=replies(writer, PromptSet(silent, seemingly.provenance), own.written) if silent else None,
            harmful=None if own.containment == 0 else replies(writer, toxic, own.harmful),
            **watched(materials, options),
        )


def on_pairs(
    toxic: PromptSet, seemingly: PromptSet, own: PreferenceOptions, options: MethodOptions
) -> Mapping[str, Any]:
    """What `prefer` is given beside the replies: adapters are those of stage 2 where the method says nothing of them.

    Raises:
        RecipeError: If adapters are those of stage 2 and the method's own options train the embeddings.
    """
    lora = own.lora if "lora" in own.model_fields_set else options.align.lora
    if lora is not None and own.train_embeddings:
        raise RecipeError(
            "The method's options have `train_embeddings: true`, and stage 2 has adapters, which leave the embeddings as they are; "
            "add `lora: null` to these options, or leave out `train_embeddings`."
        )
    return {"examples": toxic, "seemingly": seemingly, "options": own.model_copy(update={"lora": lora})}
