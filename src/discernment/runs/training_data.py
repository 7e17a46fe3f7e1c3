"""Which prompts the training stages of a recipe may see."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from discernment.errors import RecipeError
from discernment.frozen import Frozen
from discernment.methods.method import Materials
from discernment.prompts import PromptSet
from discernment.prompts.sources import PromptSource, load_sources


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


Sources = Annotated[list[PromptSource], BeforeValidator(_listed)]


class TrainingData(Frozen):
    """Which prompts the training stages may see; each entry is one set or a list of sets."""

    general: Sources | None = Field(None, description="Benign instructions with answers.")
    safety: Sources | None = Field(None, description="Toxic prompts with safe refusals.")
    augmentation: Sources | None = Field(
        None, description="Seemingly toxic prompts with answers, for `stl_aug`."
    )
    contrast: Sources | None = Field(None, description="Toxic and seemingly toxic prompts for stage 1.")
    contrast_validation: Sources | None = Field(
        None, description="Prompts by which stage 1 stops, and other methods choose."
    )
    retained: Sources | None = Field(None, description="Benign prompts for the retention term of stage 1.")
    validation: Sources | None = Field(None, description="Prompts with replies whose loss stage 2 logs.")
    general_per_safety: float | None = Field(
        None,
        gt=0,
        description="General examples for each safety example; the general ones are drawn to that ratio.",
    )

    def with_own(self, own: TrainingData) -> TrainingData:
        """These sets, with those that `own` names in their place."""
        named = own.model_dump(exclude_unset=True, exclude_none=True)
        return TrainingData.model_validate({**self.model_dump(exclude_unset=True), **named})

    def load(self, seed: int) -> Materials:
        """Read all sets.

        Args:
            seed: Seed of every draw that does not have its own.

        Raises:
            DataError: If one cannot be read, or is empty after filtering.
            RecipeError: If `general_per_safety` is given and there are too few general examples, or no sets of either kind.
        """
        sets: dict[str, PromptSet] = {
            name: load_sources(sources, name, seed=seed)
            for name in Materials.__dataclass_fields__
            if (sources := getattr(self, name, None)) is not None
        }
        if self.general_per_safety is not None:
            if missing := {"general", "safety"} - sets.keys():
                raise RecipeError(
                    f"`data.general_per_safety` is a ratio of `data.general` to `data.safety`, and there is no `data.{min(missing)}`; "
                    "name it, or leave the ratio out."
                )
            wanted = round(self.general_per_safety * len(sets["safety"]))
            if wanted > len(sets["general"]):
                raise RecipeError(
                    f"`data.general_per_safety: {self.general_per_safety}` asks for {wanted} general examples and "
                    f"there are {len(sets['general'])}; lower the ratio, limit the safety sets or name more general sets."
                )
            sets["general"] = sets["general"].sample(wanted, seed)
        return Materials(**sets)
