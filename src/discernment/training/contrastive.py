"""Stage 1 of DCR: contrastive refinement of the first l layers (Lu et al. 2026, arXiv 2603.03323, section 4).

The model is cut after layer l. The loss pulls the layer's states of prompts with one label together and pushes
those of different labels apart; everything after layer l stays as it is, byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import TrainingError
from discernment.models.cut import CutModel
from discernment.models.model_spec import ModelSpec
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, Prompt, PromptSet
from discernment.ranks import check_alone, is_first, on_first, together
from discernment.training.adapters import add_adapter, check_leaving, check_precision, leave_policy
from discernment.training.checkpoints import latest_checkpoint
from discernment.training.layer import LayerChoice, find_layer
from discernment.training.options import LossOptions, OptimizerOptions

if TYPE_CHECKING:
    from discernment.training.contrastive_trainer import ContrastiveTrainer

Stopping = Literal["probe_auroc", "cross_similarity", "none"]


class RefineOptions(OptimizerOptions):
    """Options of stage 1."""

    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=4)
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="Prompts that are run at once, for a batch that does not fit; each is then run twice a step.",
        exclude_if=lambda size: size is None,  # so stages keep the names that they had before there was this
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "constant_with_warmup"
    layer: LayerChoice = Field(
        description="l: the last layer that is trained; its output is what the loss sees. `auto` finds it."
    )
    first_layer: int = Field(
        0,
        ge=0,
        description="Layers up to this one are left as they are, and those behind it up to `layer` are trained; 0 trains all "
        "of them.",
    )
    steps: int = Field(150, ge=1, description="At most so many steps.")
    loss: LossOptions = Field(default_factory=LossOptions)
    labels: Literal["all", "toxic_or_not"] = Field(
        "all",
        description="What is contrasted: every label with every other, or toxic prompts with all others, which are "
        "then pulled together.",
    )
    label_weights: dict[Label, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="How many prompts of each label come into a batch, in proportion; 1 for a label that is not named.",
    )
    matched: bool = Field(True, description="Draw the matched partner of a prompt into the same batch.")
    retention: float = Field(
        0.0,
        ge=0,
        description="Weight of the term that keeps the states of benign prompts near what they were before stage 1.",
    )
    retention_batch: int = Field(8, ge=1, description="Benign prompts a step for the retention term.")
    train_embeddings: bool = False
    evaluate_every: int = Field(10, ge=1, description="Steps between two looks at the validation prompts.")
    stopping: Stopping = Field(
        "cross_similarity",
        description="Validation number by which the best look after the start is kept and the stage stops early.",
    )
    patience: int = Field(3, ge=1, description="Looks without improvement before the stage stops.")
    average_last: int = Field(
        0,
        ge=0,
        description="Leave the mean of what is trained over so many steps at the end; 0 leaves the last step's.",
        exclude_if=lambda steps: steps == 0,
    )

    @property
    def rows_at_once(self) -> int:
        """Most prompts that are run at once."""
        return self.batch_size if self.micro_batch_size is None else self.micro_batch_size

    @property
    def rows(self) -> int:
        """Rows of a batch, the retained ones included."""
        return self.batch_size + (self.retention_batch if self.retention else 0)

    def share(self) -> int:
        """As of any stage; rows that are run some at a time are those of one process."""
        if self.micro_batch_size is not None:
            check_alone("`refine.micro_batch_size`")
        return super().share()

    @model_validator(mode="after")
    def _memory_has_room(self) -> Self:
        if 0 < self.loss.memory <= self.batch_size:
            raise ValueError(
                f"`loss.memory: {self.loss.memory}` holds nothing beside a batch of {self.batch_size}; raise it or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _average_has_its_steps(self) -> Self:
        if self.average_last > self.steps:
            raise ValueError(
                f"`average_last: {self.average_last}` are more steps than the {self.steps} of `steps`"
            )
        if self.average_last and self.stopping != "none":
            raise ValueError(
                f"`average_last` goes up to the last step, and `stopping: {self.stopping}` may keep another; set it to `none`"
            )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if self.layer != "auto" and self.first_layer >= self.layer:
            raise ValueError(
                f"`first_layer: {self.first_layer}` leaves nothing to train up to layer {self.layer}; lower it"
            )
        if self.lora is not None and self.train_embeddings:
            raise ValueError(
                "adapters leave the embeddings as they are; leave out `lora` or `train_embeddings`"
            )
        return self

    def check_prompts(self, prompts: Iterable[Prompt], retained: Iterable[Prompt] | None) -> None:
        """Make sure that no option is about prompts that are not there, and no prompts are there for nothing.

        Args:
            prompts: The contrast.
            retained: The prompts of the retention term.

        Raises:
            TrainingError: If a label that is weighted has no prompt, or the retained ones have no weight.
        """
        if lacking := sorted(self.label_weights.keys() - {prompt.label for prompt in prompts}):
            raise TrainingError(
                f"`label_weights` names {' and '.join(lacking)}, and the contrast has no such prompts; leave it out or name sets "
                "that have some."
            )
        if retained is not None and not self.retention:
            raise TrainingError(
                "Retained prompts do nothing without `retention`; set it above 0, or leave them out."
            )


@together
def refine(
    start: PolicySpec | ModelSpec | str,
    prompts: PromptSet,
    options: RefineOptions,
    out: Path,
    validation: PromptSet | None = None,
    retained: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Refine the first layers of a model, and leave a policy in `out`.

    Args:
        start: The policy or model to start from.
        prompts: The contrast: prompts of at least two labels.
        options: How to train.
        out: The stage's directory; gets `history.jsonl`, for `layer: auto` also `layer.json`, and what `leave_policy`
            leaves.
        validation: Prompts by which the best step is kept and the stage stops early.
        retained: Benign prompts whose states are kept near those of `start`, where `options.retention` is above 0.
        probes: Prompts that are watched through the training; `out` then gets `dynamics.jsonl`.
        dynamics: How they are watched.

    Raises:
        TrainingError: If the contrast has one label only or none of a label that is weighted, there are retained prompts and
            no `options.retention`, `layer: auto` finds no layer behind `first_layer`, the loss is not finite, or
            `average_last` is asked for with FSDP.
        ModelError: If the model cannot be loaded or cut, the layer is out of range, or the policy has a rule.
        DataError: If no prompt among the probes is toxic, or one has more tokens than the model has positions.
        DiskError: If there is no room for what is left; that is seen before the first step.
    """
    from discernment.training.contrastive_trainer import make_trainer
    from discernment.training.history import watch

    start = PolicySpec.of(start).without_rule("Refinement")
    options.check_prompts(prompts, retained)
    policy = Policy.load(start, training=True)
    check_precision(policy.model, options.lora)
    check_leaving(policy.model, options.lora, out)
    _check_all_fit(policy, prompts, validation, retained)
    network: Any = policy.model
    layer, notes = _layer(policy, validation or prompts, options, out)
    torch.manual_seed(options.seed)
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    first = options.first_layer
    with CutModel(
        network, layer, path=policy.layer_path, train_embeddings=options.train_embeddings, held=first
    ) as cut:
        if options.lora is not None:
            network = add_adapter(network, cut.found, range(first + 1, layer + 1), options.lora)
        trainer = make_trainer(start.model, cut, policy, prompts, options, out, validation, retained)
        looks = watch(trainer, policy, probes, out, dynamics, cut.whole)
        sharded = _train(trainer, cut, policy.pad_id, out)
    if sharded:
        policy.model.tie_weights()  # of which one end was not in the cut
    if is_first():
        leave_policy(start, network, policy.chat, options.lora, out)
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return _cost(trainer, {**notes, "layer": layer, **looks.notes})


def _cost(trainer: ContrastiveTrainer, notes: dict[str, Any]) -> StageCost:
    steps, best = trainer.state.global_step, trainer.state.best_global_step
    drawn = trainer.sampler.drawn(steps * trainer.options.gradient_accumulation)
    tokens = sum(len(trainer.rows[row]["input_ids"]) for row in drawn)
    return StageCost(
        steps=steps, tokens=tokens, notes={**notes, "kept_step": steps if best is None else best}
    )


def _train(trainer: ContrastiveTrainer, cut: CutModel, pad_id: int, out: Path) -> bool:
    """Train on from the last checkpoint, and say whether the model was spread over several devices for it."""
    from discernment.training.sharding import gather_model, is_sharded

    sharded = is_sharded(trainer)
    if sharded and trainer.options.average_last:
        raise TrainingError("`average_last` needs a model that is whole on each device; start without FSDP.")
    if sharded:
        cut.run_in_one_pass(pad_id)
    checkpoint = on_first(latest_checkpoint, out, sharded=sharded)
    # A look that was taken before the interruption would count twice towards stopping.
    trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    gather_model(trainer)
    return sharded


def _check_all_fit(policy: Policy, *sets: PromptSet | None) -> None:
    for prompts in sets:
        if prompts is not None:
            check_context(policy, policy.encode(prompts.asked), names_of(prompts))


def _layer(
    policy: Policy, prompts: PromptSet, options: RefineOptions, out: Path
) -> tuple[int, dict[str, Any]]:
    """The layer to refine, and the reason where it had to be found."""
    if options.layer != "auto":
        return options.layer, {}
    layer, reason = on_first(find_layer, policy, prompts, out, options.rows_at_once, options.loss.pooling)
    if options.first_layer >= layer:
        raise TrainingError(
            f"`first_layer: {options.first_layer}` leaves nothing to train up to layer {layer}, which `layer: auto` has "
            "found; lower it or name a layer."
        )
    return layer, {"layer_reason": reason}
