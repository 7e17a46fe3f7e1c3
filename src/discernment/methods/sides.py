"""The sides that directions and subspaces are found between: toxic training prompts, seemingly toxic ones, and others."""

from discernment.errors import RecipeError
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


def seemingly_toxic(materials: Materials, method: str) -> PromptSet:
    """Seemingly toxic prompts of `data.augmentation`, or else of `data.contrast`.

    Args:
        materials: What a method works with.
        method: Its name, for messages.

    Raises:
        RecipeError: If the recipe has neither set.
        DataError: If the set has no seemingly toxic prompt.
    """
    given = materials.augmentation or materials.contrast
    if given is None:
        raise RecipeError(
            f"The method {method!r} needs seemingly toxic prompts under `data.augmentation` or `data.contrast`, and the "
            "recipe has none there."
        )
    return given.with_label(Label.SEEMINGLY_TOXIC)


def others(prompts: PromptSet) -> PromptSet:
    """The prompts that are not toxic.

    Raises:
        DataError: If there are none.
    """
    return prompts.filter(lambda p: not p.label.should_refuse, "another label than toxic")
