"""Replies that a model writes to training prompts in a stage of its own, for later stages to train on.

Replies to toxic prompts may be harmful. They stay in the stage's directory: no report and no other file holds them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from discernment.cost import StageCost
from discernment.errors import TrainingError
from discernment.files import read_json_lines
from discernment.frozen import Frozen
from discernment.judges import KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.keyed_log import KeyedLog
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Prompt, PromptSet, Provenance

FILE = "replies.jsonl"
SENTENCE_END = re.compile(r"[.!?…][\"')\]”’]*(?=\s|$)|[。！？।]")  # noqa: RUF001


class ReplyOptions(Frozen):
    """How replies are written."""

    max_tokens: int = Field(128, ge=1, description="Token cap of a reply.")
    temperature: float = Field(0.7, ge=0, le=2, description="0 takes the likeliest token.")
    batch_size: int = Field(16, ge=1, description="Prompts that are replied to side by side.")


class Written(NamedTuple):
    """A reply, and its number of tokens."""

    text: str
    tokens: int


def write_replies(
    start: PolicySpec, prompts: PromptSet, options: ReplyOptions, seed: int, out: Path, draws: int = 1
) -> StageCost:
    """Let a policy reply to prompts; an interrupted call goes on where it was.

    Args:
        start: Who replies.
        prompts: What it is asked.
        options: How it replies.
        seed: Seed of the draws.
        out: The stage's directory; gets `replies.jsonl`, a row a prompt with its id as `key` and the `reply`. Of several
            replies to a prompt, the first has its id as `key`, and the others name it as `prompt`.
        draws: Replies to each prompt, drawn one by one.

    Raises:
        ModelError: If the policy cannot be loaded.
        DataError: If a prompt and its reply do not fit the model's positions.
        DiskError: If there is no room for the replies.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = KeyedLog(out / FILE, _read, "is no reply; delete the file to have it written anew")
    keys = {prompt.id: _keys(prompt, draws) for prompt in prompts}
    if any(key not in log for of_prompt in keys.values() for key in of_prompt):
        policy, side_by_side = Policy.load(start), max(1, options.batch_size // draws)
        # The batches are those of an uninterrupted call: neighbours may change the last digits of a logit.
        for first in range(0, len(prompts), side_by_side):
            batch = prompts.prompts[first : first + side_by_side]
            rows = [(prompt, key) for prompt in batch for key in keys[prompt.id]]
            if all(key in log for _, key in rows):
                continue
            encoded = policy.encode([prompt.asked for prompt in batch])
            asked = [sequence for sequence in encoded for _ in range(draws)]
            said = policy.generate(
                asked,
                options.max_tokens,
                temperature=options.temperature,
                seed=seed,
                draws=[*range(draws)] * len(batch),
            )
            for (prompt, key), reply in zip(rows, said, strict=True):
                if key not in log:
                    row = {"reply": reply.text, "tokens": reply.tokens, "finished": reply.finished}
                    log.add(key, _read(row), row if key == prompt.id else {"prompt": prompt.id, **row})
    found = [log[key] for of_prompt in keys.values() for key in of_prompt]
    return StageCost(steps=len(found), tokens=sum(written.tokens for written in found))


def replies_in(folder: Path) -> dict[str, list[str]]:
    """The replies that `write_replies` left, by the id of their prompt, in the order of the draws; silence is left out.

    Those that the token cap cut end with their last whole sentence: trained on as they are, they would teach to stop anywhere.
    """
    found: dict[str, list[str]] = {}
    for _, row in read_json_lines(folder / FILE):
        reply = row["reply"].strip()
        if reply := reply if row.get("finished", True) else whole_sentences(reply):
            found.setdefault(row.get("prompt", row["key"]), []).append(reply)
    return found


def whole_sentences(reply: str) -> str:
    """A reply up to its last whole sentence; as it is where it has none."""
    *_, end = (0, *(mark.end() for mark in SENTENCE_END.finditer(reply)))
    return reply[:end] or reply


def with_replies(prompts: PromptSet, folder: Path, *, refusals: bool) -> PromptSet:
    """The prompts with the replies that `write_replies` left to them; those that got none are left out.

    Args:
        prompts: The prompts that were replied to.
        folder: Where the replies lie.
        refusals: Keep replies that are refusals too.

    Raises:
        TrainingError: If no reply is left.
    """
    said, judge = replies_in(folder), KeywordJudge()
    kept = [
        prompt.model_copy(update={"response": reply})
        for prompt in prompts
        for reply in said.get(prompt.id, [])[:1]
        if refusals or judge.judge(prompt.text, reply) is not Verdict.REFUSAL
    ]
    if not kept:
        raise TrainingError(
            f"Of {len(prompts)} prompts of {prompts.provenance.name}, the model answered none: it refused or said nothing; "
            "start from a model that answers them."
        )
    return PromptSet(kept, Provenance(name=f"replies to {prompts.provenance.name}"))


def _read(row: Mapping[str, Any]) -> Written:
    return Written(str(row["reply"]), int(row["tokens"]))


def _keys(prompt: Prompt, draws: int) -> list[str]:
    """Keys of the replies to a prompt."""
    return [prompt.id, *(f"{prompt.id} (draw {number})" for number in range(2, draws + 1))]
