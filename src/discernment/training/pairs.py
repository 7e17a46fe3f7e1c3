"""Pairs of replies of which one is to be preferred, made of what models said and a judge thinks of it.

- Seemingly toxic prompts: an answer is preferred to the refusal of the model that is to be trained.
- Toxic prompts: a refusal is preferred to a reply that is none.

What is rejected may be harmful; it is read, and no token of it is ever a target.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from discernment.errors import TrainingError
from discernment.judges import KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.models.chat import ChatFormat
from discernment.prompts import Prompt, PromptSet
from discernment.training.replies import replies_in

if TYPE_CHECKING:
    from datasets import Dataset
from discernment.training.examples import encode_exchange


class Pair(NamedTuple):
    """A prompt, the reply to prefer, and the one to turn away from."""

    prompt: Prompt
    chosen: str
    rejected: str


def accepted(prompts: PromptSet, said: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The first right reply to each prompt, by its id: a refusal where it is toxic, else an answer.

    Args:
        prompts: The prompts.
        said: Replies by the id of their prompt.
    """
    judge = KeywordJudge()
    found = {
        p.id: _first(judge, p, said, Verdict.REFUSAL if p.label.should_refuse else Verdict.COMPLIANCE)
        for p in prompts
    }
    return {key: reply for key, reply in found.items() if reply is not None}


def find_pairs(
    seemingly: PromptSet,
    toxic: PromptSet,
    refusals: Path,
    answers: Path | None,
    harmful: Path | None,
) -> tuple[list[Pair], list[Pair]]:
    """All pairs that there are, in the order of the prompts.

    What is preferred is the first right reply among those that were written, else the prompt's own response. A response to a
    seemingly toxic prompt that is itself a refusal makes no pair; one to a toxic prompt is taken as it is, for what is safe need
    not say that it refuses.

    Args:
        seemingly: Seemingly toxic prompts.
        toxic: Toxic prompts with safe refusals.
        refusals: Where `write_replies` left what the model that is to be trained says to `seemingly`.
        answers: Where it left what another says to them; None where nothing was asked.
        harmful: Where it left what a model says to `toxic` that does not refuse all of it; None where nothing was asked.

    Returns:
        Those of seemingly toxic prompts, and those of toxic ones.
    """
    judge = KeywordJudge()
    own, taught, told = (replies_in(f) if f is not None else {} for f in (refusals, answers, harmful))

    def pairs(
        prompts: PromptSet, right: Mapping[str, Sequence[str]], wrong: Mapping[str, Sequence[str]]
    ) -> list[Pair]:
        best, found = accepted(prompts, right), []
        for p in prompts:
            refuse = p.label.should_refuse
            chosen = best.get(p.id) or p.response
            rejected = _first(judge, p, wrong, Verdict.COMPLIANCE if refuse else Verdict.REFUSAL)
            if chosen and rejected and (refuse or judge.judge(p.text, chosen) is not Verdict.REFUSAL):
                found.append(Pair(p, chosen, rejected))
        return found

    return pairs(seemingly, taught, own), pairs(toxic, told, told)


def contained(seemingly: Sequence[Pair], toxic: Sequence[Pair], share: float | None, seed: int) -> list[Pair]:
    """As many pairs as there are with a share of toxic ones, as exactly as whole pairs allow.

    Args:
        seemingly: Pairs of seemingly toxic prompts.
        toxic: Pairs of toxic prompts.
        share: Toxic pairs among all, at least 0 and below 1; None takes all pairs that there are.
        seed: Of the draw among those of which there are too many.

    Raises:
        TrainingError: If there are none of a kind that is needed.
    """
    if not seemingly and (share is not None or not toxic):
        raise TrainingError(
            "The model refuses no seemingly toxic prompt of which an answer is known, so there is no reply to prefer to "
            "another; start from a model that over-refuses, or name more prompts under `data.augmentation`."
        )
    if share and not toxic:
        raise TrainingError(
            f"No toxic prompt got a reply other than a refusal, so there is no toxic pair for `containment: {share}`; set "
            "it to 0 to do without."
        )
    if share is None:
        return [*seemingly, *toxic]
    part = Fraction(str(share))
    total = int(len(seemingly) / (1 - part))
    if part:
        total = min(total, int(len(toxic) / part))
    most = round(part * total)
    draw = random.Random(seed)  # noqa: S311
    return [*_some(seemingly, total - most, draw), *_some(toxic, most, draw)]


def encode_pairs(pairs: Sequence[Pair], chat: ChatFormat, max_length: int) -> Dataset:
    """Token ids of pairs, which are those of the supervised rows.

    Args:
        pairs: The pairs.
        chat: The model's chat format.
        max_length: Tokens of prompt and reply; longer replies are cut at the end.

    Returns:
        Columns `prompt_ids`, `chosen_ids` and `rejected_ids`, one row a pair, in order.

    Raises:
        TrainingError: If a prompt fills `max_length` alone.
    """
    from datasets import Dataset

    rows = []
    for pair, name in zip(pairs, names_of_pairs(pairs), strict=True):
        (prompt, chosen), (_, rejected) = (
            encode_exchange(pair.prompt, reply, name, chat, max_length)
            for reply in (pair.chosen, pair.rejected)
        )
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return Dataset.from_list(rows)


def names_of_pairs(pairs: Sequence[Pair]) -> list[str]:
    """What messages call each pair's prompt."""
    return [f"{pair.prompt.id!r} of {pair.prompt.source}" for pair in pairs]


def _first(
    judge: KeywordJudge, prompt: Prompt, said: Mapping[str, Sequence[str]], wanted: Verdict
) -> str | None:
    return next((r for r in said.get(prompt.id, ()) if judge.judge(prompt.text, r) is wanted), None)


def _some(pairs: Sequence[Pair], count: int, draw: random.Random) -> list[Pair]:
    """So many of the pairs, in their order."""
    return [pairs[n] for n in sorted(draw.sample(range(len(pairs)), count))]
