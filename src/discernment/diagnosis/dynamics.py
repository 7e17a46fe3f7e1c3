"""Learning dynamics: how rejection probability and kernel similarity move while a model is trained.

A callback looks at fixed probe prompts of the three groups at log-spaced steps of either training stage (Lu et al.
2026, arXiv 2603.03323, figures 1, 3 and 5) and leaves the training itself as it would be without it, bit for bit.

Each look is one row of `dynamics.jsonl` in the stage's directory:

    step                 optimizer steps done; 0 is the model that the stage starts from
    rejection            mean rejection probability by group: {"toxic": 0.31, ...}
    rejection_by_prompt  the same for each prompt: {"toxic": {"id": 0.28, ...}, ...}
    row_normalised       ||K(x', x)|| / ||K(x', x')|| (the paper's value), mean over pairs of different prompts, by the
                         group of x' and then the group of x: {"toxic": {"toxic": 0.8, "benign": 0.2, ...}, ...}; null
                         where a pair of groups has no pair of different prompts
    symmetric            ||K(x', x)|| / sqrt(||K(x', x')|| ||K(x, x)||), likewise
    unscored             prompts that have no kernel, with the reason: {"id": "...", ...}
    cost                 seconds: what this look took; training_seconds: the stage's time so far without looks; share:
                         of the stage's time so far that looks took

The kernel is that of all parameters; adapters, while there are any, count as well. Groups are labels; a group without
probe prompts is absent. A stage that stops early has no rows beyond the step at which it stopped; one that keeps its
best step is seen as it was kept in row 0 of the stage that follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from discernment.diagnosis.draw import draw_groups
from discernment.errors import DataError
from discernment.frozen import Frozen
from discernment.prompts import Prompt, PromptSet


class DynamicsOptions(Frozen):
    """What is watched through training, and how often."""

    per_group: int = Field(4, ge=2, description="Prompts of each group whose gradient kernel is measured.")
    rejection_per_group: int = Field(
        16, ge=1, description="Prompts of each group whose rejection probability is measured."
    )
    k: int = Field(
        4,
        ge=1,
        description="Output tokens of the kernel. The paper looks at 10; the cost of a look grows with the square.",
    )
    rows: Literal["shared", "own"] = Field(
        "own",
        description="`own`: each prompt's own k likeliest tokens, as the authors do; `shared`: the same k for all.",
    )
    most_looks: int = Field(
        8, ge=3, description="At most so many looks a stage, first and last step included."
    )


def look_steps(total: int, most: int) -> list[int]:
    """Steps at which to look: 0, 1, 2, 4, ..., `total`, spread wider where that would be too many.

    Args:
        total: Steps of the stage, at least 1.
        most: At most so many looks, at least 3.
    """
    ratio = max(2.0, total ** (1 / (most - 2)))
    return sorted({0, total, *(min(total, round(ratio**n)) for n in range(most - 2))})


@dataclass(frozen=True)
class Probes:
    """The prompts that are watched, group by group.

    Attributes:
        rejection: Prompts whose rejection probability is measured.
        kernel: Prompts whose gradient kernel is measured.
    """

    rejection: tuple[Prompt, ...]
    kernel: tuple[Prompt, ...]

    @classmethod
    def choose(cls, prompts: PromptSet, options: DynamicsOptions, seed: int = 0) -> Probes:
        """Draw the probe prompts; matched pairs come first, both sides together.

        Args:
            prompts: What to draw from. A label without prompts is left out.
            options: How many of each group.
            seed: Seed of the draw.

        Raises:
            DataError: If there is no toxic prompt, or only one prompt.
        """
        if len(prompts) < 2 or not any(p.label.should_refuse for p in prompts):
            raise DataError(
                "The probe prompts of the learning dynamics need a toxic one and at least one other; "
                f"{prompts.summary()}."
            )
        groups = draw_groups(prompts, seed)
        return cls(
            rejection=tuple(p for group in groups for p in group[: options.rejection_per_group]),
            kernel=tuple(p for group in groups for p in group[: options.per_group]),
        )
