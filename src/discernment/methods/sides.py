"""The two sides that steering rules are found between: toxic training prompts, and others."""

from discernment.methods.method import Materials
from discernment.prompts import Label, PromptSet


def toxic_and_others(materials: Materials, method: str, most: int, seed: int) -> tuple[PromptSet, PromptSet]:
    """Toxic prompts of `data.safety` and prompts of `data.general` that are not.

    Args:
        materials: What a method works with.
        method: Its name, for messages.
        most: At most so many of each are drawn.
        seed: Of the draw.

    Raises:
        RecipeError: If the recipe has no such sets.
        DataError: If a set has no prompt of its side.
    """
    toxic = materials.need("safety", method).with_label(Label.TOXIC)
    benign = others(materials.need("general", method))
    return toxic.sample(most, seed), benign.sample(most, seed)


def others(prompts: PromptSet) -> PromptSet:
    """The prompts that are not toxic.

    Raises:
        DataError: If there are none.
    """
    return prompts.filter(lambda p: not p.label.should_refuse, "another label than toxic")
