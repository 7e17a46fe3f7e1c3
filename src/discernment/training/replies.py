"""Replies that a model writes to training prompts in a stage of its own, for later stages to train on.

Replies to toxic prompts may be harmful. They stay in the stage's directory: no report and no other file holds them.
"""

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
from discernment.prompts import PromptSet, Provenance

FILE = "replies.jsonl"


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
    start: PolicySpec, prompts: PromptSet, options: ReplyOptions, seed: int, out: Path
) -> StageCost:
    """Let a policy reply to prompts; an interrupted call goes on where it was.

    Args:
        start: Who replies.
        prompts: What it is asked.
        options: How it replies.
        seed: Seed of the draws.
        out: The stage's directory; gets `replies.jsonl`, a row a prompt with its id as `key` and the `reply`.

    Raises:
        ModelError: If the policy cannot be loaded.
        DataError: If a prompt and its reply do not fit the model's positions.
        DiskError: If there is no room for the replies.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = KeyedLog(out / FILE, _read, "is no reply; delete the file to have it written anew")
    todo = [prompt for prompt in prompts if prompt.id not in log]
    if todo:
        policy = Policy.load(start)
        # The batches are those of an uninterrupted call: neighbours may change the last digits of a logit.
        for first in range(0, len(prompts), options.batch_size):
            batch = prompts.prompts[first : first + options.batch_size]
            if all(prompt.id in log for prompt in batch):
                continue
            asked = policy.encode([prompt.asked for prompt in batch])
            said = policy.generate(asked, options.max_tokens, temperature=options.temperature, seed=seed)
            for prompt, reply in zip(batch, said, strict=True):
                if prompt.id not in log:
                    row = {"reply": reply.text, "tokens": reply.tokens}
                    log.add(prompt.id, _read(row), row)
    return StageCost(steps=len(prompts), tokens=sum(log[prompt.id].tokens for prompt in prompts))


def with_replies(prompts: PromptSet, folder: Path, *, refusals: bool) -> PromptSet:
    """The prompts with the replies that `write_replies` left to them; those that got none are left out.

    Args:
        prompts: The prompts that were replied to.
        folder: Where the replies lie.
        refusals: Keep replies that are refusals too.

    Raises:
        TrainingError: If no reply is left.
    """
    said: Mapping[str, str] = {row["key"]: row["reply"].strip() for _, row in read_json_lines(folder / FILE)}
    judge = KeywordJudge()
    kept = [
        prompt.model_copy(update={"response": reply})
        for prompt in prompts
        if (reply := said.get(prompt.id))
        and (refusals or judge.judge(prompt.text, reply) is not Verdict.REFUSAL)
    ]
    if not kept:
        raise TrainingError(
            f"Of {len(prompts)} prompts of {prompts.provenance.name}, the model answered none: it refused or said nothing; "
            "start from a model that answers them."
        )
    return PromptSet(kept, Provenance(name=f"replies to {prompts.provenance.name}"))


def _read(row: Mapping[str, Any]) -> Written:
    return Written(str(row["reply"]), int(row["tokens"]))
