"""Decoupled refusal training: refusing at every point of a harmful reply (DeRTa; Yuan et al., ACL 2025, arXiv 2407.09121).

Of a toxic prompt q with a safe refusal r and a harmful reply h two rows are made, beside the ordinary ones:

- q, the first k tokens of h, and r: only r is learned, so that the model can still turn to it behind a harmful
  beginning (MLE with a harmful response prefix).
- q and h: at the places of the tokens of h the token that begins a refusal is learned, "Sorry" (reinforced transition
  optimisation).

Both go into one cross-entropy with all other rows. No token of h is ever a target.
"""

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.frozen import Frozen
from discernment.models.chat import ChatFormat
from discernment.policies.context import names_of
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Prompt, PromptSet
from discernment.ranks import together
from discernment.training.examples import IGNORED, TrainingRows, encode_examples
from discernment.training.replies import ReplyOptions, with_replies
from discernment.training.supervised import AlignOptions, fine_tune

KEPT_IN_FULL_TRAINING = 0.05
"""Share of the places of a harmful reply that the paper keeps where all parameters are trained; with LoRA it keeps all."""


class DertaOptions(Frozen):
    """Options of `derta`."""

    word: str = Field(
        "Sorry", min_length=1, description="What refusals begin with; its first token is the target."
    )
    keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the places of a harmful reply at which it is the target; 0.05, and 1 with `lora`, by "
        "default.",
    )
    plain_every: int | None = Field(
        3,
        ge=1,
        description="Every so many-th refusal is learned without a harmful beginning; none says never.",
    )
    harmful: ReplyOptions = Field(
        default_factory=ReplyOptions, description="How the base model writes the harmful replies."
    )


@together
def align_decoupled(
    start: PolicySpec,
    examples: PromptSet,
    harmful: Path,
    options: AlignOptions,
    own: DertaOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Fine-tune a model on prompts with replies and on harmful replies, and leave a policy in `out`.

    Args:
        start: The policy to start from.
        examples: Prompts, all with a response.
        harmful: Where `write_replies` left replies to those that are toxic.
        options: How to train.
        own: How the rows are made.
        out: The stage's directory; see `align`.
        validation: Prompts with responses whose loss is logged once an epoch.
        probes: Prompts that are watched through the training.
        dynamics: How they are watched.

    Raises:
        TrainingError: If there is no harmful reply; else see `align`.
    """
    toxic = examples.filter(lambda p: p.label.should_refuse, "a label that should be refused")
    found = {p.id: p.response or "" for p in with_replies(toxic, harmful, refusals=False)}
    cost = fine_tune(
        start,
        lambda chat: derta_rows(examples, found, chat, options, own),
        options,
        out,
        validation,
        probes,
        dynamics,
    )
    return cost.model_copy(update={"notes": {**cost.notes, "harmful_replies": len(found)}})


def derta_rows(
    examples: PromptSet,
    harmful: Mapping[str, str],
    chat: ChatFormat,
    options: AlignOptions,
    own: DertaOptions,
) -> TrainingRows:
    """The rows to train on: one of each example, and another one of each harmful reply.

    Args:
        examples: Prompts, all with a response.
        harmful: Harmful replies, by the id of their prompt; a toxic prompt without one is an ordinary example.
        chat: The model's chat format.
        options: Gives the longest row, the seed, and by `lora` the default of `own.keep`.
        own: How the rows are made.

    Raises:
        TrainingError: If an example has no response, or its prompt fills a row alone.
    """
    from datasets import Dataset

    draw = random.Random(options.seed)  # noqa: S311
    keep = own.keep or (KEPT_IN_FULL_TRAINING if options.lora is None else 1.0)
    target = chat.encode_opening(own.word)[0]
    made: list[tuple[dict[str, Any], str]] = []
    encoded = encode_examples(examples, chat, options.max_length)
    refused = 0
    for example, row, name in zip(examples, encoded, names_of(examples), strict=True):
        begins = row["completion_mask"].index(1)
        prompt, reply = row["input_ids"][:begins], row["input_ids"][begins:]
        if example.id not in harmful:
            made.append((_row(prompt, (reply, reply)), name))
            continue
        refused += 1
        text = _without_frame(chat, example, harmful[example.id])
        before = len(prompt) + len(chat.lead)
        # The refusal is not cut short for its beginning.
        most = min(len(text), options.max_length - len(prompt) - len(reply))
        plain = own.plain_every is not None and refused % own.plain_every == 0
        prefix = text[: 0 if plain else draw.randint(0, most)]
        lead, refusal = reply[: len(chat.lead)], reply[len(chat.lead) :]
        made.append((_row(prompt, (lead, lead), (prefix, None), (refusal, refusal)), name))
        text = text[: max(0, options.max_length - before)]
        places = {*draw.sample(range(len(text)), math.ceil(keep * len(text)))}
        labels = [target if place in places else IGNORED for place in range(len(text))]
        if text:
            made.append((_row(prompt, (chat.lead, None), (text, labels)), name))
    return TrainingRows(Dataset.from_list([row for row, _ in made]), [name for _, name in made])


def _without_frame(chat: ChatFormat, example: Prompt, reply: str) -> list[int]:
    """Token ids of a reply's text alone, as it stands behind its prompt."""
    return chat.encode_reply(example.asked, reply)[len(chat.lead) : -1]


def _row(prompt: Sequence[int], *parts: tuple[Sequence[int], Sequence[int] | None]) -> dict[str, list[int]]:
    """A prompt and the parts of what follows, each with what is learned in its place, if anything is."""
    ids, labels = [*prompt], [IGNORED] * len(prompt)
    for tokens, learned in parts:
        ids += tokens
        labels += [IGNORED] * len(tokens) if learned is None else learned
    return {"input_ids": ids, "labels": labels}
