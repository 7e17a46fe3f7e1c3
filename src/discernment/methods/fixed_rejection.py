"""Fixed rejection: no toxic prompt at all, and one sentence of refusal (Wang et al., CVPR 2025, arXiv 2504.10000).

The paper asks whether safety fine-tuning needs curated malicious data, and does without: it gives a part of the benign
instructions one fixed rejection for an answer. The end of the sequence behind it is no target, so that only the first
tokens of the rejection are learned. What the model then refuses, no prompt has told it.
"""

import random
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import TrainingError
from discernment.frozen import Frozen
from discernment.methods.method import Materials, Method, MethodOptions, Stage, watched
from discernment.models.chat import ChatFormat
from discernment.policies.context import names_of
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.examples import TrainingRows, encode_examples
from discernment.training.supervised import AlignOptions, fine_tune


class FixedRejectionOptions(Frozen):
    """Options of `fixed_rejection`."""

    share: float = Field(0.3, gt=0, lt=1, description="Share of the general examples that are rejected.")
    sentence: str = Field(
        "I'm sorry, but I cannot assist with your request.", min_length=1, description="The rejection."
    )


class FixedRejection(Method):
    """Fine-tune on general instructions, some of which are rejected in one sentence."""

    name: ClassVar[str] = "fixed_rejection"
    options_type: ClassVar[type[FixedRejectionOptions]] = FixedRejectionOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Align the base model."""
        return stage(
            "align",
            align_rejecting,
            start=base,
            examples=materials.need("general", self.name),
            options=options.align,
            own=options.own or FixedRejectionOptions(),
            validation=materials.validation,
            **watched(materials, options),
        )


def align_rejecting(
    start: PolicySpec,
    examples: PromptSet,
    options: AlignOptions,
    own: FixedRejectionOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Fine-tune a model on prompts of which some are rejected, and leave a policy in `out`.

    Args:
        start: The policy to start from.
        examples: Prompts, all with a response.
        options: How to train; its seed draws what is rejected.
        own: How many are rejected, and how.
        out: The stage's directory; see `align`.
        validation: Prompts with responses whose loss is logged once an epoch.
        probes: Prompts that are watched through the training.
        dynamics: How they are watched.

    Raises:
        TrainingError: If none would be rejected; else see `align`.
    """

    def make_rows(chat: ChatFormat) -> TrainingRows:
        return rejecting_rows(examples, chat, options, own)

    return fine_tune(start, make_rows, options, out, validation, probes, dynamics)


def rejecting_rows(
    examples: PromptSet, chat: ChatFormat, options: AlignOptions, own: FixedRejectionOptions
) -> TrainingRows:
    """The rows to train on, one of each example, in order.

    Raises:
        TrainingError: If none would be rejected.
    """
    from datasets import Dataset

    count = round(own.share * len(examples))
    if not count:
        raise TrainingError(
            f"`share: {own.share}` of {len(examples)} general examples is none to reject; raise it or name more."
        )
    chosen = set(random.Random(options.seed).sample(range(len(examples)), count))  # noqa: S311
    mixed = PromptSet(
        [
            p.model_copy(update={"response": own.sentence}) if n in chosen else p
            for n, p in enumerate(examples)
        ],
        examples.provenance,
    )
    rows = encode_examples(mixed, chat, options.max_length).to_list()
    for n in chosen:
        if rows[n]["input_ids"][-1] == chat.end_of_turn:  # it may have been cut off
            rows[n]["completion_mask"][-1] = 0
    return TrainingRows(Dataset.from_list(rows), names_of(mixed))
