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

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from discernment.diagnosis.draw import draw_groups
from discernment.diagnosis.similarity import group_table, row_normalised, symmetric
from discernment.errors import DataError
from discernment.files import append_json_lines, read_json_lines, write_json_lines
from discernment.frozen import Frozen
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.instrument import as_it_was
from discernment.kernel.kernel import Floats, KernelOptions
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, Prompt, PromptSet

logger = logging.getLogger(__name__)

Means = dict[str, dict[str, float | None]]


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


class DynamicsCallback(TrainerCallback):
    """Looks at the probe prompts at log-spaced steps and writes one row a look.

    Args:
        policy: The model in training, with its chat format.
        prompts: What to draw the probe prompts from.
        out: The stage's directory; gets `dynamics.jsonl`. Rows that lie after the step that the stage resumes from
            are dropped.
        options: What to measure, and how often.
        whole: Makes the policy's model whole for the time of a look, where only a part of it is trained.

    Raises:
        DataError: If there is no toxic prompt, or only one prompt.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: PromptSet,
        out: Path,
        options: DynamicsOptions | None = None,
        whole: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.policy = policy
        self.options = options or DynamicsOptions()
        self.probes = Probes.choose(prompts, self.options)
        self.path = out / "dynamics.jsonl"
        self.whole = whole
        self.steps: list[int] = []
        self.rows: list[dict[str, Any]] = []
        self._trained = self._since = 0.0

    @property
    def seconds(self) -> float:
        """What all looks took, those before an interruption included."""
        return float(sum(row["cost"]["seconds"] for row in self.rows))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what an interrupted attempt wrote beyond its last checkpoint, and look at where the stage starts."""
        known = [r for _, r in read_json_lines(self.path, allow_torn_end=True)] if self.path.exists() else []
        self.rows = [row for row in known if row["step"] <= state.global_step]
        write_json_lines(self.path, self.rows)
        self.steps = look_steps(state.max_steps, self.options.most_looks)
        self._trained = self.rows[-1]["cost"]["training_seconds"] if self.rows else 0.0
        self._since = time.perf_counter()
        if state.global_step not in {row["step"] for row in self.rows}:
            self.on_step_end(args, state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look, if the step is one to look at."""
        if state.global_step in self.steps:
            start = time.perf_counter()
            self._trained += start - self._since
            self._look(state.global_step, start)
            self._since = time.perf_counter()

    def _look(self, step: int, start: float) -> None:
        model = self.policy.model
        with self.whole(), undisturbed(model), without_autocast(model):
            nn.Module.eval(model)
            found = {**self._rejection(), **self._similarity()}
        seconds = time.perf_counter() - start
        looks = self.seconds + seconds
        cost = {
            "seconds": seconds,
            "training_seconds": self._trained,
            "share": looks / (looks + self._trained),
        }
        row = {"step": step, **found, "cost": {name: round(value, 4) for name, value in cost.items()}}
        self.rows.append(row)
        append_json_lines(self.path, [row])
        logger.info("Looked at the probe prompts after step %s in %.1f s.", step, seconds)

    def _rejection(self) -> dict[str, Any]:
        values = rejection_probability(self.policy, [p.asked for p in self.probes.rejection])
        by_prompt: dict[str, dict[str, float]] = {}
        for prompt, value in zip(self.probes.rejection, values, strict=True):
            by_prompt.setdefault(prompt.label.value, {})[prompt.id] = value
        means = {group: float(np.mean(list(found.values()))) for group, found in by_prompt.items()}
        return {"rejection": means, "rejection_by_prompt": by_prompt}

    def _similarity(self) -> dict[str, Any]:
        prompts = self.probes.kernel
        kernel = gradient_kernel(
            self.policy,
            [p.asked for p in prompts],
            KernelOptions(rows=self.options.rows, k=self.options.k, noise_floor=False),
        )
        groups = [p.label for p in prompts]
        return {
            "row_normalised": _by_group(row_normalised(kernel.norms), groups),
            "symmetric": _by_group(symmetric(kernel.norms), groups),
            "unscored": {prompts[n].id: reason for n, reason in kernel.unscored.items()},
        }


def _by_group(similarity: Floats, groups: Sequence[Label]) -> Means:
    means: Means = {}
    for pair in group_table(similarity, groups):
        means.setdefault(pair.row.value, {})[pair.column.value] = pair.mean
    return means


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leave random numbers, gradients and the flags of modules and parameters as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    gradients = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    gpus = {p.device for p, _ in gradients if p.device.type == "cuda"}
    with torch.random.fork_rng(list(gpus)), as_it_was(model):
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """Compute in the weights' own precision: in mixed precision, accelerate puts autocast around `forward` itself."""
    original = model.__dict__.get("_original_forward")
    if original is None:
        yield
        return
    wrapped = model.forward
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
