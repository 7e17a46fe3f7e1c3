"""Looking at probe prompts between two steps of a training stage; what is written is in `diagnosis.dynamics`."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from discernment.diagnosis.dynamics import DynamicsOptions, Probes, look_steps
from discernment.diagnosis.similarity import group_table, row_normalised, symmetric
from discernment.files import append_json_lines, read_json_lines, write_json_lines
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.instrument import as_it_was
from discernment.kernel.kernel import Floats, KernelOptions
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, PromptSet

logger = logging.getLogger(__name__)

Means = dict[str, dict[str, float | None]]


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
