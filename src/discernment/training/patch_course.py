"""The training that a patch is made of: gradient descent or ascent on harmful replies, for some steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from discernment.errors import TrainingError
from discernment.models.batch import pad
from discernment.training.attention import quick_attention
from discernment.training.examples import IGNORED

if TYPE_CHECKING:
    from discernment.training.patching import PatchingOptions


class Trained(NamedTuple):
    """What a model is trained on to make patches.

    Attributes:
        rows: Token ids and completion mask of prompts with harmful replies, as `encode_examples` gives them.
        questions: Token ids of the prompts.
        pad_id: The padding token.
        mixed: Whether to compute in bfloat16.
    """

    rows: Sequence[dict[str, list[int]]]
    questions: Sequence[Sequence[int]]
    pad_id: int
    mixed: bool


class Course(NamedTuple):
    """How the training of a patch went.

    Attributes:
        losses: The loss before each step, and the one that ended an ascent.
        steps: How many there were.
        tokens: Tokens of their batches, padding left out.
    """

    losses: list[float]
    steps: int
    tokens: int


def train_weights(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    trained: Trained,
    sign: float,
    options: PatchingOptions,
) -> Course:
    """Train on the replies; ascent ends early where they are no likelier than tokens drawn by chance.

    Args:
        model: The model.
        weights: What is trained.
        trained: What it is trained on.
        sign: What the loss is multiplied by; below 0 for ascent.
        options: How to train.

    Raises:
        TrainingError: If a loss is not finite.
    """
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    steps = tokens = 0
    batches = _batches(len(trained.rows), options)
    while steps < options.steps:
        rows = [trained.rows[n] for n in next(batches)]
        tokens += sum(len(row["input_ids"]) for row in rows)
        ids, mask = pad([row["input_ids"] for row in rows], trained.pad_id, "right")
        learned, _ = pad([row["completion_mask"] for row in rows], 0, "right")
        loss = mean_loss(model, ids, mask, torch.where(learned == 1, ids, IGNORED), mixed=trained.mixed)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                "The loss of a patch is not finite; lower `learning_rate` or `steps` of safe_patching."
            )
        if sign < 0 and losses[-1] > math.log(_vocabulary(model)):
            break
        optimizer.zero_grad()
        (sign * loss).backward()
        nn.utils.clip_grad_norm_(weights, options.max_gradient_norm)
        optimizer.step()
        steps += 1
    optimizer.zero_grad()
    return Course(losses, steps, tokens)


def _batches(count: int, options: PatchingOptions) -> Iterator[list[int]]:
    """Row numbers of each step, in an order that is drawn anew in each pass."""
    draw = torch.Generator().manual_seed(options.seed)
    while True:
        yield from (part.tolist() for part in torch.randperm(count, generator=draw).split(options.batch_size))


def mean_loss(model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor, *, mixed: bool) -> Tensor:
    """Mean negative log-likelihood of the tokens that `labels` names."""
    device = next(model.parameters()).device
    precision = torch.autocast(device.type, torch.bfloat16, enabled=mixed)
    with quick_attention(ids.to(device), mixed=mixed), precision:
        logits: Tensor = model(
            input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
        ).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(device), ignore_index=IGNORED
    )


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().vocab_size)
