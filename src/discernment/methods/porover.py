"""POROver: overgenerated answers, then preference optimisation (Karaman et al., ICML 2025, arXiv 2410.12999).

1. Replies. A teacher draws several replies to every training prompt, and a judge says which of them are right: refusals of
   toxic prompts, answers to all others. The paper's teacher is a stronger model; here it is the base model.
2. Align. The mix of `stl` with the accepted replies, and with the seemingly toxic prompts that got one.
3. Replies. The aligned model replies to the seemingly toxic prompts.
4. Prefer. DPO: accepted answers before the refusals of 3, and refusals of toxic prompts before replies of 1 that are none.
   The share of the toxic pairs contains what safety is lost.
"""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.methods.dpo import on_pairs
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.methods.sides import seemingly_toxic
from discernment.methods.stl import safety_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet
from discernment.training.pairs import accepted
from discernment.training.preference import PreferenceOptions, prefer
from discernment.training.replies import ReplyOptions, replies_in, write_replies
from discernment.training.supervised import AlignOptions, align


class OvergenerationOptions(ReplyOptions):
    """How the teacher replies."""

    temperature: float = Field(1.0, gt=0, le=2, description="Replies to one prompt are to differ.")
    draws: int = Field(4, ge=1, description="Replies to each prompt.")


class PoroverOptions(PreferenceOptions):
    """Options of `porover`."""

    overgenerated: OvergenerationOptions = Field(
        default_factory=OvergenerationOptions, description="How the base model replies as the teacher."
    )


class Porover(Method):
    """Fine-tune on overgenerated replies that a judge accepts, then on pairs of them and of refusals."""

    name: ClassVar[str] = "porover"
    options_type: ClassVar[type[PoroverOptions]] = PoroverOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Have the teacher reply, align the base model, have it reply, and train it on pairs."""
        own: PoroverOptions = options.own or PoroverOptions()
        mix = safety_mix(materials, self.name)
        # Ids that would clash are made unique, since all prompts are replied to together.
        asked = PromptSet.concatenate([mix, seemingly_toxic(materials, self.name)], "overgenerated")
        mix = PromptSet(asked.prompts[: len(mix)], mix.provenance)
        seemingly = PromptSet(asked.prompts[len(mix) :], asked.provenance)
        seed = options.align.seed
        taught = stage.run(
            "replies",
            write_replies,
            {
                "start": options.writer(base),
                "prompts": asked,
                "options": own.overgenerated,
                "seed": seed,
                "draws": own.overgenerated.draws,
            },
        )
        aligned = stage(
            "align",
            align_accepted,
            start=base,
            examples=mix,
            seemingly=seemingly,
            replies=taught,
            options=options.align,
            validation=materials.validation,
            **watched(materials, options),
        )
        said = stage.run(
            "replies",
            write_replies,
            {"start": aligned, "prompts": seemingly, "options": own.written, "seed": seed},
        )
        return stage(
            "prefer",
            prefer,
            start=aligned,
            **on_pairs(mix.with_label(Label.TOXIC), seemingly, own, options),
            refusals=said,
            answers=taught,
            harmful=taught,
            **watched(materials, options),
        )


def align_accepted(
    start: PolicySpec,
    examples: PromptSet,
    seemingly: PromptSet,
    replies: Path,
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """`align` on prompts with the replies that a judge accepts.

    Args:
        start: The policy to start from.
        examples: Prompts, all with a response, which stays where no reply is accepted.
        seemingly: Seemingly toxic prompts; one without a response is left out where no reply is accepted.
        replies: Where `write_replies` left replies to all of them.
        options: How to train.
        out: The stage's directory; see `align`.
        validation: As for `align`.
        probes: As for `align`.
        dynamics: As for `align`.

    Raises:
        TrainingError: See `align`.
    """
    said = replies_in(replies)
    found = accepted(examples, said) | accepted(seemingly, said)
    mix = [
        p.model_copy(update={"response": found.get(p.id, p.response)})
        for p in (*examples, *seemingly)
        if p.id in found or p.response
    ]
    cost = align(start, PromptSet(mix, examples.provenance), options, out, validation, probes, dynamics)
    counts = PromptSet([p for p in mix if p.id in found], examples.provenance).counts()
    return cost.model_copy(update={"notes": {**cost.notes, "accepted": counts}})
