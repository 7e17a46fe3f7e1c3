"""What makes the tokens of a policy's replies: transformers in this process, or vLLM in another."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Literal

from discernment.errors import RecipeError
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import MESSAGE_RULE, PolicySpec
from discernment.ranks import several

logger = logging.getLogger(__name__)

Engine = Literal["auto", "transformers", "vllm"]
COMMAND = "vllm"
ACCELERATORS = ("cuda", "xpu")
"""Kinds of devices that vLLM is made for; torch calls those of ROCm `cuda` as well."""


def choose_engine(asked: Engine, policy: PolicySpec) -> Literal["transformers", "vllm"]:
    """The engine that a policy replies by; what the user did not say so is said once.

    Args:
        asked: What the user asks for.
        policy: The policy; one behind an endpoint replies by whatever is there, which `transformers` stands for.

    Raises:
        RecipeError: If vLLM is asked for and not installed.
    """
    if asked == "transformers" or policy.model.is_served:
        return "transformers"
    if asked == "vllm":
        check_engine(asked)
    why = _cannot(policy) or (_is_not_here(policy.model) if asked == "auto" else None)
    if why is not None:
        _say(f"`engine: {asked}`: transformers generates, because {why}.")
        return "transformers"
    if asked == "auto":
        _say("`engine: auto`: vLLM generates.")
    return "vllm"


def check_engine(asked: Engine) -> None:
    """Make sure that the engine that is asked for is there.

    Raises:
        RecipeError: If it is not.
    """
    if asked == "vllm" and find_command() is None:
        raise RecipeError(
            f"`engine: vllm` needs the command `{COMMAND}`, and there is none beside this Python or on PATH; "
            "`pip install 'discernment[vllm]'`, or set `engine: auto`."
        )


def find_command() -> str | None:
    """The command that starts vLLM: this environment's own, or one on PATH, which may be that of another environment."""
    own = str(Path(sys.executable).parent)
    return shutil.which(COMMAND, path=os.pathsep.join([own, os.environ.get("PATH", os.defpath)]))


def _cannot(policy: PolicySpec) -> str | None:
    """Why vLLM cannot reply as a policy does."""
    if policy.rule is not None and policy.rule.name != MESSAGE_RULE:
        return f"vLLM has no rule {policy.rule.name!r}"
    if policy.model.quantization is not None:
        return f"vLLM would quantise otherwise than `quantization: {policy.model.quantization}` does"
    if len(policy.adapters) > 1:
        return f"vLLM takes one adapter, and the policy has {len(policy.adapters)}"
    if several():
        return "the replies are shared out among several processes"
    return None


def _is_not_here(model: ModelSpec) -> str | None:
    """Why vLLM would not run on this machine, or be slow."""
    from discernment.models.precision import choose_device

    if find_command() is None:
        return f"there is no command `{COMMAND}`"
    kind = choose_device(model).type
    return None if kind in ACCELERATORS else f"the device is {kind!r}"


@cache
def _say(text: str) -> None:
    logger.info("%s", text)
