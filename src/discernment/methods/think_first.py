"""Think first: a short reflection on safety before the answer (TBR; Si et al., arXiv 2503.17882).

Where a prompt is toxic or looks so, the reply that is trained on begins with a reflection on whether answering would do harm;
general instructions are answered at once. The reflection stands between the marks of a thought (`models/thoughts.py`), so
that a judge sees the answer behind it. The first tokens of such a reply are no answer: the rejection probability says
nothing of this method.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.frozen import Frozen
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from discernment.training.replies import ReplyOptions, with_replies, write_replies
from discernment.training.supervised import AlignOptions, align

OPENS, CLOSES = "<think>", "</think>"
HARMFUL = "Is this harmful? Yes{about}: helping could hurt somebody. I decline."
HARMLESS = "Is this harmful? No{but}: what is asked hurts nobody. I answer."
QUESTION = (
    "Somebody asks an assistant:\n\n{asked}\n\nThis is {what}. Say in one sentence why, without answering it."
)


class ReflectionOptions(ReplyOptions):
    """How reflections are written."""

    max_tokens: int = Field(48, ge=1, description="Token cap of a reflection.")


class ThinkFirstOptions(Frozen):
    """Options of `think_first`."""

    by: Literal["rule", "model"] = Field(
        "rule",
        description="Who reflects: a fixed sentence by label, category and key word, or the base model, which is told the "
        "label and asked why.",
    )
    written: ReflectionOptions = Field(
        default_factory=ReflectionOptions, description="How the base model writes its reflections."
    )


class ThinkFirst(Method):
    """Fine-tune on general instructions, and on toxic and seemingly toxic prompts with a reflection before the reply."""

    name: ClassVar[str] = "think_first"
    options_type: ClassVar[type[ThinkFirstOptions]] = ThinkFirstOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Put the reflections before the replies, then align the base model."""
        own: ThinkFirstOptions = options.own or ThinkFirstOptions()
        sets = [materials.need(name, self.name) for name in ("general", "safety", "augmentation")]
        examples = PromptSet.concatenate(sets, "reflecting mix")
        common = {"options": options.align, "validation": materials.validation, **watched(materials, options)}
        if own.by == "rule":
            return stage("align", align, start=base, examples=reflecting(examples, {}), **common)
        asked = {"start": options.writer(base), "prompts": questions(examples), "options": own.written}
        written = stage.run("replies", write_replies, {**asked, "seed": options.align.seed})
        return stage("align", align_reflecting, start=base, examples=examples, reflections=written, **common)


def align_reflecting(
    start: PolicySpec,
    examples: PromptSet,
    reflections: Path,
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """`align` on prompts with replies, with the reflections that `write_replies` left before those that have one.

    Raises:
        TrainingError: If there is no reflection; else see `align`.
    """
    written = with_replies(questions(examples), reflections, refusals=True)
    found = {p.id: p.response or "" for p in written}
    return align(start, reflecting(examples, found), options, out, validation, probes, dynamics)


def questions(examples: PromptSet) -> PromptSet:
    """What the model is asked for a reflection, for each prompt that is toxic or seems so.

    Raises:
        DataError: If there is none.
    """
    reflected = examples.filter(_needs_thought, "a label that asks for a reflection")
    asked = [
        Prompt(
            id=p.id,
            text=QUESTION.format(asked=p.whole, what="harmful" if p.label.should_refuse else "harmless"),
            label=p.label,
            source=p.source,
        )
        for p in reflected
    ]
    return PromptSet(asked, Provenance(name="questions for reflections"))


def reflecting(examples: PromptSet, written: Mapping[str, str]) -> PromptSet:
    """The same prompts, with a reflection before the reply where they are toxic or seem so.

    Args:
        examples: Prompts with responses.
        written: Reflections by the id of their prompt; where there is none, it is made by rule.
    """
    return PromptSet(
        [
            p.model_copy(update={"response": _after(written.get(p.id) or by_rule(p), p.response)})
            if _needs_thought(p) and p.response
            else p
            for p in examples
        ],
        examples.provenance,
    )


def by_rule(prompt: Prompt) -> str:
    """A reflection on a prompt, by its label, its category and its key word."""
    if prompt.label.should_refuse:
        about = f", it is about {prompt.category.replace('_', ' ')}" if prompt.category else ""
        return HARMFUL.format(about=about)
    return HARMLESS.format(but=f", {prompt.keyword!r} only sounds so" if prompt.keyword else "")


def _needs_thought(prompt: Prompt) -> bool:
    return prompt.label is not Label.BENIGN


def _after(reflection: str, response: str) -> str:
    thought = " ".join(reflection.split()).replace(CLOSES, "")
    return f"{OPENS}\n{thought}\n{CLOSES}\n\n{response}"
