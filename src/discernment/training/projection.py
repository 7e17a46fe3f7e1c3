"""Training one layer to turn its states along the direction of refusal (ACTOR; Dabas et al., ICML 2025, arXiv 2507.04250).

Let R be the difference of the mean states of toxic and of benign prompts at a layer, at the last prompt token. A state a
of a toxic prompt is to become a + alpha Proj_R(a), one of any other prompt a - alpha Proj_R(a); the loss is one minus the
cosine of the state and what it is to become. No replies are needed, and the layers behind are not run.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.diagnosis.separability import LayerSeparation, Recommendation
from discernment.errors import TrainingError
from discernment.models.cut import CutModel
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet
from discernment.training.adapters import add_adapter, check_leaving, check_precision, leave_policy
from discernment.training.batches import PromptRows
from discernment.training.checkpoints import latest_checkpoint
from discernment.training.layer import LayerChoice, find_layer
from discernment.training.options import OptimizerOptions


class ProjectionOptions(OptimizerOptions):
    """Options of `actor`."""

    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(16, ge=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "constant_with_warmup"
    layer: LayerChoice = Field(
        "auto", description="The layer that is trained; `auto` takes the one with the best silhouette."
    )
    alpha: float = Field(0.5, gt=0, description="How far states are turned.")
    rounds: int = Field(
        3, ge=1, description="Passes over the prompts; R and the targets are made anew before each."
    )
    benign: int = Field(50, ge=2, description="At most so many of the general prompts stand for the benign.")


def clearest_middle(found: Sequence[LayerSeparation]) -> Recommendation:
    """The layer with the best silhouette of the labels, of the middle half of all layers.

    Args:
        found: What was measured, one a layer, first to last; not empty.
    """
    edge = len(found) // 4
    best = max(found[edge : len(found) - edge], key=lambda f: f.silhouette)
    return Recommendation(
        best.layer,
        f"Layer {best.layer} has the highest silhouette of the labels ({best.silhouette:.3f}) of the middle half of the "
        "layers.",
    )


def project(
    start: PolicySpec,
    prompts: PromptSet,
    options: ProjectionOptions,
    out: Path,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Train one layer of a model, and leave a policy in `out`.

    Args:
        start: An aligned model.
        prompts: Toxic and benign prompts, and seemingly toxic ones.
        options: How to train; with `checkpoint_every` an interrupted call goes on from its last whole pass.
        out: The stage's directory; gets `history.jsonl`, for `layer: auto` also `layer.json`, and what `leave_policy`
            leaves.
        probes: Prompts that are watched through the training; `out` then gets `dynamics.jsonl`.
        dynamics: How they are watched.

    Raises:
        TrainingError: If there are no toxic prompts, or no benign ones, or the loss is not finite.
        ModelError: If the model cannot be loaded or cut, the layer is out of range, or the policy has a rule.
        DataError: If a prompt has more tokens than the model has positions, or there are too few to find the layer.
        DiskError: If there is no room for what is left; that is seen before the first step.
    """
    from discernment.training.history import watch
    from discernment.training.projection_trainer import make_trainer

    start = start.without_rule("The training of one layer")
    poles = [p for p in prompts if p.label is not Label.SEEMINGLY_TOXIC]
    if len({p.label for p in poles}) < 2:
        raise TrainingError(f"The direction needs toxic and benign prompts; {prompts.summary()}.")
    policy = Policy.load(start, training=True)
    check_precision(policy.model, options.lora)
    check_leaving(policy.model, options.lora, out)
    encoded = policy.encode(prompts.asked)
    check_context(policy, encoded, names_of(prompts))
    layer, notes = options.layer, dict[str, Any]()
    if layer == "auto":
        between = PromptSet(poles, prompts.provenance)
        layer, notes["layer_reason"] = find_layer(
            policy, between, out, options.batch_size, "last", clearest_middle
        )
    torch.manual_seed(options.seed)
    network: Any = policy.model
    rows = PromptRows(encoded, range(len(prompts)), [None] * len(prompts))
    with CutModel(network, layer, path=policy.layer_path, held=layer - 1) as cut:
        if options.lora is not None:
            network = add_adapter(network, cut.found, [layer], options.lora)
        trainer = make_trainer(start, policy, cut, rows, [p.label for p in prompts], options, out)
        looks = watch(trainer, policy, probes, out, dynamics, cut.whole)
        checkpoint = latest_checkpoint(out)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    leave_policy(start, network, policy.chat, options.lora, out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return StageCost(
        steps=trainer.state.global_step,
        tokens=round(options.rounds * len(rows) * rows.mean_length),
        notes={**notes, "layer": layer, **looks.notes},
    )
