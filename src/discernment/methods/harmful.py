"""Harmful replies, which nobody but the base model of a run writes, and which stay in the run's directory."""

from pathlib import Path

from discernment.methods.method import Materials, Stage
from discernment.methods.stl import safety_mix
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet
from discernment.training.replies import ReplyOptions, write_replies


def harmful_replies(
    base: PolicySpec, materials: Materials, method: str, options: ReplyOptions, seed: int, stage: Stage
) -> tuple[PromptSet, Path]:
    """The toxic prompts of the safety mix, and where the base model's replies to them lie.

    Methods that ask with the same options share the stage.

    Args:
        base: The base model.
        materials: What a method works with.
        method: Its name, for messages.
        options: How the base model replies.
        seed: Seed of the draws.
        stage: Runs the stage.

    Raises:
        RecipeError: If the recipe has no general or no safety examples.
        DataError: If none of these is toxic.
    """
    toxic = safety_mix(materials, method).with_label(Label.TOXIC)
    asked = {"start": base, "prompts": toxic, "options": options, "seed": seed}
    return toxic, stage.run("replies", write_replies, asked)
