"""Patches against harm and against over-refusal, merged into a model's weights (SafePatching; Zhao et al., arXiv 2405.13820).

Both patches come from the same toxic prompts with harmful replies: the safety patch is what gradient ascent on the replies
adds to the weights, the over-safety patch what ordinary descent adds. Of each, entries are kept at random with probability
p, and of these the ones that matter most for the prompts, by the score |W dL/dW| of SNIP (Lee et al. 2019, arXiv
1810.02340): the share a of all weights for safety and the share b for over-safety. Where only one of the two has an entry,
it is added: W + alpha P_safety + beta P_over-safety.

The over-safety patch by itself undoes an alignment. It is made in memory and never written, nor is a model with it alone.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from discernment.cost import StageCost
from discernment.errors import ModelError
from discernment.frozen import Frozen
from discernment.models.layers import find_layers
from discernment.models.precision import trains_mixed
from discernment.models.quantised import is_quantised
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.adapters import check_leaving, check_precision, leave_policy
from discernment.training.examples import encode_examples
from discernment.training.patch_course import Course, Trained, mean_loss, train_weights
from discernment.training.replies import ReplyOptions, with_replies

logger = logging.getLogger(__name__)

ASCENT, DESCENT = -1.0, 1.0
"""What the loss is multiplied by for the safety patch, and for the over-safety patch."""

Merge = Literal["both", "safety", "over_safety", "intersection"]


class PatchingOptions(Frozen):
    """Options of `safe_patching`."""

    steps: int = Field(10, ge=1, le=100, description="Optimizer steps of each patch, at most.")
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(8, ge=1, description="Harmful replies a step.")
    prompts: int = Field(128, ge=1, description="At most so many toxic prompts with a reply.")
    p: float = Field(0.3, gt=0, le=1, description="With what probability an entry of a patch is kept.")
    a: float = Field(0.03, gt=0, le=1, description="Share of the weights that the safety patch may change.")
    b: float = Field(
        0.02, gt=0, le=1, description="Share of the weights that the over-safety patch may change."
    )
    alpha: float = Field(1.0, ge=0, description="What the safety patch is multiplied by.")
    beta: float = Field(1.0, ge=0, description="What the over-safety patch is multiplied by.")
    rescale: bool = Field(False, description="Divide what is kept of a patch by p.")
    patches: Literal["both", "safety", "intersection"] = Field(
        "both",
        description="`both` adds each patch where the other has nothing; `safety` the safety patch alone; `intersection` both "
        "where both have something.",
    )
    max_gradient_norm: float = Field(1.0, gt=0)
    seed: int = 0
    harmful: ReplyOptions = Field(
        default_factory=ReplyOptions, description="How the base model writes the harmful replies."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if max(self.a, self.b) > self.p:
            raise ValueError(
                f"`a` ({self.a}) and `b` ({self.b}) are shares of what `p` ({self.p}) keeps of all weights; they cannot "
                "be above it"
            )
        if self.beta > 0 and self.alpha == 0:
            raise ValueError(
                "the over-safety patch is not added by itself, since it undoes the alignment; set `alpha` above 0, or "
                "`beta` to 0"
            )
        return self


class Patch(NamedTuple):
    """What is added to some of the weights.

    Attributes:
        places: Which of all weights, counted through the matrices in order; rising, `[entries]`.
        values: What is added to each, float32, `[entries]`.
    """

    places: Tensor
    values: Tensor

    def only(self, chosen: Tensor) -> "Patch":
        """The entries that a mask, `[entries]`, is true for."""
        return Patch(self.places[chosen], self.values[chosen])


def patch(
    start: PolicySpec,
    prompts: PromptSet,
    harmful: Path,
    options: PatchingOptions,
    max_length: int,
    out: Path,
) -> StageCost:
    """Make both patches, merge them into the model, and leave a policy in `out`; nothing else is written.

    Args:
        start: An aligned model; adapters are folded in first.
        prompts: Toxic prompts.
        harmful: Where `write_replies` left replies to them; refusals among these are left out.
        options: How patches are made and merged.
        max_length: Tokens of prompt and reply together.
        out: The stage's directory; gets `model/` and `policy.json`.

    Raises:
        TrainingError: If there is no harmful reply, or a loss is not finite.
        ModelError: If the model cannot be loaded, is quantised, or its layers are not found, or the policy has a rule.
        DataError: If an example has more tokens than the model has positions.
        DiskError: If there is no room for the model; that is seen before the first step.
    """
    policy = Policy.load(start.without_rule("Patching"), training=True)
    if is_quantised(policy.model):
        raise ModelError(
            f"The weights of {policy.name} are quantised, so no patch can be added to them; start from a model that is not."
        )
    check_precision(policy.model, None)
    check_leaving(policy.model, None, out)
    examples = with_replies(prompts, harmful, refusals=False).sample(options.prompts, options.seed)
    rows = encode_examples(examples, policy.chat, max_length).to_list()
    advice = "lower max_length, shorten it or leave it out"
    check_context(policy, [row["input_ids"] for row in rows], names_of(examples), advice=advice)
    trained = Trained(rows, policy.encode(examples.asked), policy.pad_id, trains_mixed(start.model))
    weights = patched_weights(policy.model, policy.layer_path)
    notes: dict[str, Any] = {"harmful_replies": len(examples)}
    found, courses = _patches(policy.model, weights, trained, options)
    for name, course in courses.items():
        notes[f"{name}_losses"] = [round(course.losses[0], 4), round(course.losses[-1], 4)]
    changed = (0, 0)
    if courses["safety"].steps:  # the over-safety patch is not added by itself
        changed = merge(weights, found[0], found[-1], options.patches, options.alpha, options.beta)
    leave_policy(start, policy.model, policy.chat, None, out)
    looks = len(courses) * sum(map(len, trained.questions))  # which the scores are of
    return StageCost(
        steps=sum(course.steps for course in courses.values()),
        tokens=sum(course.tokens for course in courses.values()) + looks,
        notes={
            **notes,
            "weights": sum(w.numel() for w in weights),
            "changed": dict(zip(("safety", "over_safety"), changed, strict=True)),
        },
    )


def _patches(
    model: nn.Module, weights: Sequence[nn.Parameter], trained: Trained, options: PatchingOptions
) -> tuple[list[Patch], dict[str, Course]]:
    """The patches that are asked for, and how each came about; without anything to unlearn the first alone."""
    found, courses = [], {}
    for name, sign, rate in (("safety", ASCENT, options.a), ("over_safety", DESCENT, options.b)):
        if sign is DESCENT and options.patches == "safety":
            continue
        made, courses[name] = make_patch(model, weights, trained, sign, rate, options)
        found.append(made)
        if not courses[name].steps:
            logger.warning(
                "The harmful replies are no likelier than tokens drawn by chance: nothing to unlearn, so no patch is added."
            )
            break
    return found, courses


def patched_weights(model: nn.Module, path: str | None = None) -> list[nn.Parameter]:
    """The matrices of all layers, which patches are for; nothing else of the model wants gradients any more.

    Args:
        model: The model.
        path: Name of the layer list, where it is not found by itself.
    """
    model.requires_grad_(False)
    weights = [w for w in find_layers(model, path).layers.parameters() if w.ndim > 1]
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def make_patch(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    trained: Trained,
    sign: float,
    rate: float,
    options: PatchingOptions,
) -> tuple[Patch, Course]:
    """Train the weights, keep what matters most of how they moved, and put them back.

    The scores are those of the model with all that was kept at random.

    Args:
        model: The model.
        weights: What is trained.
        trained: What it is trained on.
        sign: `ASCENT` or `DESCENT`.
        rate: The share of all weights that the patch has in the end.
        options: How to train, and how much is kept at random.

    Returns:
        The patch, and how the training went.

    Raises:
        TrainingError: If a loss is not finite.
    """
    with torch.no_grad():
        start = torch.cat([w.flatten().float().cpu() for w in weights])
    course = train_weights(model, weights, trained, sign, options)
    draw = torch.Generator().manual_seed(options.seed * 2 + int(sign > 0))
    kept = torch.cat([torch.rand(w.numel(), generator=draw) < options.p for w in weights])
    with torch.no_grad():
        for weight, before, stays in zip(weights, _parts(start, weights), _parts(kept, weights), strict=True):
            trained_to = weight.float().cpu()
            if options.rescale:
                trained_to = before + (trained_to - before) / options.p
            weight.copy_(torch.where(stays, trained_to, before))
    places = most_important(snip_scores(model, weights, trained), kept, rate)
    values = _taken(weights, places) - start[places]
    with torch.no_grad():
        for weight, before in zip(weights, _parts(start, weights), strict=True):
            weight.copy_(before)
    return Patch(places, values), course


def snip_scores(model: nn.Module, weights: Sequence[nn.Parameter], trained: Trained) -> Tensor:
    """|W dL/dW|, averaged over the questions; L is the mean negative log-likelihood of a question's tokens.

    Args:
        model: The model.
        weights: The weights that are scored.
        trained: Holds the questions.

    Returns:
        One score a weight, through the matrices in order, `[weights]`, float32, on the CPU.
    """
    scores = torch.zeros(sum(w.numel() for w in weights))
    parts = _parts(scores, weights)
    for question in trained.questions:
        ids = torch.tensor([list(question)])
        loss = mean_loss(model, ids, torch.ones_like(ids), ids, mixed=trained.mixed)
        gradients = torch.autograd.grad(loss, list(weights), allow_unused=True)
        with torch.no_grad():
            for part, weight, gradient in zip(parts, weights, gradients, strict=True):
                if gradient is not None:
                    part += (weight * gradient).abs().float().cpu() / len(trained.questions)
    return scores


def most_important(scores: Tensor, kept: Tensor, rate: float) -> Tensor:
    """The places with the highest scores among those that are kept, rising.

    Args:
        scores: One a weight, at least 0, `[weights]`; they are written over, to have no second copy.
        kept: Whether a weight's entry was kept, `[weights]`.
        rate: How many, as a share of all weights; fewer where fewer are kept.
    """
    count = min(round(rate * len(scores)), int(kept.sum()))
    if count == 0:
        return torch.zeros(0, dtype=torch.long)
    among = scores.masked_fill_(~kept, -1.0)
    least = float(np.partition(among.numpy(), len(among) - count)[len(among) - count])
    above, level = (among > least).nonzero()[:, 0], (among == least).nonzero()[:, 0]
    return torch.cat([above, level[: count - len(above)]]).sort().values


def merge(
    weights: Sequence[nn.Parameter],
    safety: Patch,
    over_safety: Patch,
    which: Merge,
    alpha: float,
    beta: float,
) -> tuple[int, int]:
    """Add patches to the weights.

    Args:
        weights: The weights, which are changed.
        safety: The safety patch.
        over_safety: The over-safety patch.
        which: `both` adds each where the other has nothing (the paper), one alone is added as it is, `intersection`
            adds both where both have something.
        alpha: What the safety patch is multiplied by.
        beta: What the over-safety patch is multiplied by.

    Returns:
        How many entries of each patch were added.
    """
    counts = []
    for patch_, other, name, scale in (
        (safety, over_safety, "safety", alpha),
        (over_safety, safety, "over_safety", beta),
    ):
        if which in ("both", "intersection"):
            shared = torch.isin(patch_.places, other.places, assume_unique=True)
            chosen = patch_.only(shared if which == "intersection" else ~shared)
        else:
            chosen = patch_.only(torch.full_like(patch_.places, which == name, dtype=torch.bool))
        if scale > 0:  # adding 0 would turn -0 into 0
            _add(weights, chosen, scale)
        counts.append(len(chosen.places) if scale > 0 else 0)
    return counts[0], counts[1]


def _parts(flat: Tensor, weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """What stands for each matrix, in its form; views."""
    parts = flat.split([w.numel() for w in weights])
    return [part.view(w.shape) for part, w in zip(parts, weights, strict=True)]


def _within(places: Tensor, weights: Sequence[nn.Parameter]) -> Iterator[tuple[nn.Parameter, slice, Tensor]]:
    """Each matrix, which of the places lie in it, and where there."""
    ends = torch.tensor([w.numel() for w in weights]).cumsum(0)
    borders = [0, *torch.searchsorted(places, ends).tolist()]
    for n, weight in enumerate(weights):
        part = slice(borders[n], borders[n + 1])
        inside = places[part] - (int(ends[n]) - weight.numel())
        yield weight, part, inside.to(weight.device)


@torch.no_grad()
def _taken(weights: Sequence[nn.Parameter], places: Tensor) -> Tensor:
    """The weights at some places."""
    found = [w.flatten()[inside].float().cpu() for w, _, inside in _within(places, weights)]
    return torch.cat(found)


@torch.no_grad()
def _add(weights: Sequence[nn.Parameter], patch_: Patch, scale: float) -> None:
    for weight, part, inside in _within(patch_.places, weights):
        values = weight.flatten().clone()
        values[inside] += scale * patch_.values[part].to(values)
        weight.copy_(values.view_as(weight))
