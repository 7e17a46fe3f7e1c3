"""The layer that a stage trains, or trains up to: named by the user, or found by how well it tells the labels apart."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from discernment.diagnosis.separability import (
    LayerSeparation,
    Recommendation,
    layer_states,
    recommend_layer,
    separability,
)
from discernment.files import read_json, write_json
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet

logger = logging.getLogger(__name__)

FILE = "layer.json"


def _in_one_sentence(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:  # which would say of each alternative what is wrong
        raise ValueError("Input should be the number of a layer, counted from 1, or `auto`") from None


LayerChoice = Annotated[
    Annotated[int, Field(ge=1, strict=True)] | Literal["auto"], WrapValidator(_in_one_sentence)
]
"""A layer, counted from 1, or `auto`: the one that `find_layer` finds."""


def find_layer(
    policy: Policy,
    prompts: PromptSet,
    out: Path,
    batch_size: int,
    pooling: Literal["last", "mean"],
    recommend: Callable[[Sequence[LayerSeparation]], Recommendation] = recommend_layer,
) -> Recommendation:
    """Find the layer for a stage, once: an interrupted stage goes on with the layer that it began with.

    Args:
        policy: What stage 1 starts from.
        prompts: Prompts to measure separability on; never those of a benchmark.
        out: The stage's directory; gets `layer.json`.
        batch_size: Prompts a forward pass.
        pooling: How the loss pools the states.
        recommend: Chooses a layer by how well each tells the labels apart.

    Raises:
        DataError: If there are fewer than two toxic prompts, or than two others.
        ModelError: If the layers are not found, or a state is not finite.
    """
    file = out / FILE
    if not file.exists():
        states = layer_states(policy, prompts, batch_size=batch_size, pooling=pooling)
        write_json(file, recommend(separability(states, prompts))._asdict())
    found = Recommendation(**read_json(file))
    logger.info("%s", found.reason)
    return found


def found_layer(stage: Path) -> int | None:
    """The layer that `find_layer` found for a stage; None if it was not asked to, or not yet.

    Args:
        stage: The stage's directory.
    """
    file = stage / FILE
    return Recommendation(**read_json(file)).layer if file.exists() else None
