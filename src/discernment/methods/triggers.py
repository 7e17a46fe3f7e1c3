"""Triggers: what is left of toxic prompts without their harm is answered (Xue et al., TrustNLP 2026, arXiv 2603.11388).

Safety fine-tuning links refusal also with the harmless parts of toxic prompts, their wording and topics: refusal triggers.
The paper takes these benign remainders out of the toxic training prompts, gives them answers, and trains on them in
place of general instructions.
"""

import re
from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from discernment.prompts.words import TOKEN, stem, stems, words
from discernment.training.replies import ReplyOptions, with_replies, write_replies
from discernment.training.supervised import AlignOptions, align

FEWEST_WORDS = 3
"""A remainder with fewer words asks for nothing."""


class TriggersOptions(Frozen):
    """Options of `triggers`."""

    by: Literal["remainder", "partner"] = Field(
        "remainder",
        description="`remainder` takes the words that speak for harm out of the toxic prompts and lets the base model answer "
        "what is left; `partner` takes the matched seemingly toxic prompts under `augmentation`, with their answers.",
    )
    ratio: float = Field(
        4.0,
        gt=1,
        description="A word speaks for harm where its share of the toxic prompts is so many times that of the general ones.",
    )
    answers: ReplyOptions = Field(
        default_factory=ReplyOptions, description="How the base model answers the remainders."
    )


class Triggers(Method):
    """Fine-tune on toxic prompts with refusals, and on their benign remainders with answers."""

    name: ClassVar[str] = "triggers"
    options_type: ClassVar[type[TriggersOptions]] = TriggersOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Find the remainders and have them answered, then align the base model."""
        own: TriggersOptions = options.own or TriggersOptions()
        safety = materials.need("safety", self.name)
        common = {"options": options.align, "validation": materials.validation, **watched(materials, options)}
        if own.by == "partner":
            found = partners(safety, materials.need("augmentation", self.name))
            mix = PromptSet.concatenate([safety, found], "safety and triggers")
            return stage("align", align, start=base, examples=mix, **common)
        left = remainders(safety, materials.need("general", self.name), own.ratio)
        asked = {
            "start": options.writer(base),
            "prompts": left,
            "options": own.answers,
            "seed": options.align.seed,
        }
        answers = stage.run("replies", write_replies, asked)
        return stage(
            "align", align_answered, start=base, examples=safety, triggers=left, answers=answers, **common
        )


def align_answered(
    start: PolicySpec,
    examples: PromptSet,
    triggers: PromptSet,
    answers: Path,
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """`align` on prompts with replies and on further prompts with the answers that `write_replies` left.

    Raises:
        TrainingError: If there is no answer; else see `align`.
    """
    mix = [examples, with_replies(triggers, answers, refusals=False)]
    together = PromptSet.concatenate(mix, "safety and triggers")
    return align(start, together, options, out, validation, probes, dynamics)


def partners(toxic: PromptSet, answered: PromptSet) -> PromptSet:
    """The prompts of `answered` that are matched partners of toxic ones.

    Raises:
        RecipeError: If there are none.
    """
    theirs = {p.id: p.partner for p in toxic}
    found = [p for p in answered if p.partner is not None and theirs.get(p.partner) == p.id]
    if not found:
        raise RecipeError(
            "No prompt under `data.augmentation` is the matched partner of one under `data.safety`; name matched pairs "
            "there, or use `options: {by: remainder}`."
        )
    return PromptSet(found, answered.provenance)


def remainders(toxic: PromptSet, general: PromptSet, ratio: float) -> PromptSet:
    """What is left of toxic prompts without the words that speak for harm, as benign prompts without a response.

    These are all forms of a prompt's key word, where it is known, and of the words whose share of the toxic prompts is at
    least `ratio` times that of the general ones (half a prompt is added to both counts). A prompt that holds none of them,
    or of which too little is left, is left out: nothing says that it is harmless now.

    Args:
        toxic: Toxic prompts.
        general: Benign prompts, to compare with.
        ratio: See above.

    Raises:
        RecipeError: If nothing is left of any prompt.
    """
    ours, others = _prompts_with(toxic), _prompts_with(general)

    def speaks_for_harm(word: str) -> bool:
        share = (ours[word] + 0.5) / (len(toxic) + 1)
        return share >= ratio * (others[word] + 0.5) / (len(general) + 1)

    def left_of(prompt: Prompt) -> str:
        known = {*stems(prompt.text)}
        gone = {word for word in known if speaks_for_harm(word)} | known & {*stems(prompt.keyword or "")}
        return _without(prompt.text, gone) if gone else ""

    made = [
        prompt.model_copy(
            update={"id": f"{prompt.id}-remainder", "text": text, "label": Label.BENIGN}
            | dict.fromkeys(["response", "partner", "frame", "keyword"])
        )
        for prompt in toxic
        if len(words(text := left_of(prompt))) >= FEWEST_WORDS
    ]
    if not made:
        raise RecipeError(
            f"Nothing is left of the prompts of {toxic.provenance.name} without the words that speak for harm, or none holds "
            "such a word; name more `general` examples, or change `ratio`."
        )
    return PromptSet(made, Provenance(name=f"remainders of {toxic.provenance.name}"))


def _prompts_with(prompts: PromptSet) -> Counter[str]:
    """In how many prompts each stem occurs."""
    return Counter(found for prompt in prompts for found in {*stems(prompt.text)})


def _without(text: str, gone: set[str]) -> str:
    """A text without the words of some stems, and without the gaps that they leave."""
    kept = TOKEN.sub(lambda word: "" if stem(word[0].casefold()) in gone else word[0], text)
    kept = re.sub(r"(?<!\w)-|-(?!\w)", "", kept)
    close = re.sub(r"\s+(?=[?.!,;:])", "", re.sub(r"\s+", " ", kept))
    return re.sub(r"[,;:]+(?=[?.!,;:])", "", close).strip(" ,;:")
