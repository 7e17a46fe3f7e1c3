"""Stage 1 of DCR: contrastive refinement of the first l layers (Lu et al. 2026, arXiv 2603.03323, section 4).

The model is cut after layer l. The loss pulls the layer's states of prompts with one label together and pushes
those of different labels apart; everything after layer l stays as it is, byte for byte.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.diagnosis.separability import probe_folds, separation
from discernment.errors import TrainingError
from discernment.models.chat import ChatFormat
from discernment.models.cut import CutModel
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, trains_mixed
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet
from discernment.training.adapters import add_adapter, check_leaving, leave_policy
from discernment.training.batches import BalancedBatches, Collator, PromptRows
from discernment.training.checkpoints import latest_checkpoint
from discernment.training.cut_states import batch_states, pooled_states, token_states
from discernment.training.held import HeldStates, WithStates, held_states
from discernment.training.history import HistoryCallback, StopWithoutImprovement, watch
from discernment.training.layer import LayerChoice, find_layer
from discernment.training.losses import ContrastiveLoss, LossOptions, pool, retention
from discernment.training.options import OptimizerOptions, trainer_arguments

HISTORY = {
    "loss": "loss",
    "contrast": "contrast",
    "retention": "retention",
    "learning_rate": "learning_rate",
    "eval_within_similarity": "within_similarity",
    "eval_cross_similarity": "cross_similarity",
    "eval_probe_auroc": "probe_auroc",
}
RETAINED = -1
"""Label number of prompts that take part in the retention term only."""
Validation = tuple[list[list[int]], list[bool], list[str]]
"""Encoded validation prompts: token ids, whether each is toxic, and their sources."""


class RefineOptions(OptimizerOptions):
    """Options of stage 1."""

    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=4)
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
        description="Weight of the term that keeps the states of benign prompts near the base model's.",
    )
    retention_batch: int = Field(8, ge=1, description="Benign prompts a step for the retention term.")
    train_embeddings: bool = False
    evaluate_every: int = Field(10, ge=1, description="Steps between two looks at the validation prompts.")
    stopping: Literal["probe_auroc", "cross_similarity", "none"] = Field(
        "cross_similarity",
        description="Validation number by which the best look after the start is kept and the stage stops early.",
    )
    patience: int = Field(3, ge=1, description="Looks without improvement before the stage stops.")

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if self.layer != "auto" and self.first_layer >= self.layer:
            raise ValueError(
                f"`first_layer: {self.first_layer}` leaves nothing to train up to layer {self.layer}; lower it"
            )
        return self


class ContrastiveTrainer(Trainer):
    """Trains a cut model with a contrastive loss on the states of its last layer.

    Args:
        model: The cut model.
        options: Options of stage 1.
        rows: The training rows.
        sampler: Gives their order.
        pad_id: The padding token.
        validation: Encoded validation prompts.
        held: What the layers that are not trained put out for the rows and, behind them, the validation prompts.
        **kwargs: As for `transformers.Trainer`.
    """

    def __init__(
        self,
        model: CutModel,
        options: RefineOptions,
        rows: PromptRows,
        sampler: BalancedBatches,
        pad_id: int,
        validation: Validation | None = None,
        held: HeldStates | None = None,
        **kwargs: Any,
    ) -> None:
        collate: Any = Collator(pad_id) if held is None else WithStates(Collator(pad_id), held)
        super().__init__(model=model, data_collator=collate, train_dataset=rows, **kwargs)
        self.rows = rows
        self.cut = model
        self.pad_id = pad_id
        self.options = options
        self.sampler = sampler
        self.validation = validation
        self.held = held
        self.contrastive_loss = ContrastiveLoss(options.loss)
        self.parts: dict[str, float] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> BalancedBatches:
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Contrast between the labels, plus the retention term on benign prompts."""
        hidden = batch_states(model, inputs, mixed=self.args.bf16)
        labels, mask = inputs["labels"], inputs["attention_mask"]
        contrasted = labels != RETAINED
        states = pool(hidden[contrasted], mask[contrasted], self.options.loss.pooling)
        loss = self.contrastive_loss(states, labels[contrasted])
        self.parts = {"contrast": float(loss.detach())}
        if "references" in inputs:
            drift = retention(hidden[~contrasted], inputs["references"], mask[~contrasted])
            self.parts["retention"] = float(drift.detach())
            loss = loss + self.options.retention * drift
        return (loss, hidden) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to what the trainer logs."""
        super().log({**logs, **(self.parts if "loss" in logs else {})}, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Similarity within and across the labels of the validation prompts, and a linear probe's AUROC."""
        assert self.validation is not None
        sequences, toxic, sources = self.validation
        behind = len(self.rows)
        held = None if self.held is None else [self.held[behind + n] for n in range(len(sequences))]
        states = pooled_states(
            self.cut, sequences, self.pad_id, self.options.batch_size, self.options.loss.pooling, held
        )
        found = separation(states, toxic, sources, centre=self.options.loss.centre)
        metrics = {"eval_within_similarity": found.within, "eval_cross_similarity": found.cross}
        if found.probe_auroc is not None:
            metrics["eval_probe_auroc"] = found.probe_auroc
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


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
        retained: Benign prompts whose states are kept near the base model's, where `options.retention` is above 0.
        probes: Prompts that are watched through the training; `out` then gets `dynamics.jsonl`.
        dynamics: How they are watched.

    Raises:
        TrainingError: If the contrast has one label only, `layer: auto` finds no layer behind `first_layer`, or the loss is
            not finite.
        ModelError: If the model cannot be loaded or cut, the layer is out of range, or the policy has a rule.
        DataError: If no prompt among the probes is toxic, or one has more tokens than the model has positions.
        DiskError: If there is no room for what is left; that is seen before the first step.
    """
    start = PolicySpec.of(start).without_rule("Refinement")
    policy = Policy.load(start, training=True)
    check_leaving(policy.model, options.lora, out)
    for read in (prompts, validation, retained):
        if read is not None:
            check_context(policy, policy.encode(read.asked), names_of(read))
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
        trainer = _make_trainer(start.model, cut, policy, prompts, options, out, validation, retained)
        looks = watch(trainer, policy, probes, out, dynamics, cut.whole)
        checkpoint = latest_checkpoint(out)
        # A look that was taken before the interruption would count twice towards stopping.
        trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    leave_policy(start, network, policy.chat, options.lora, out)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    steps, best = trainer.state.global_step, trainer.state.best_global_step
    rows = options.gradient_accumulation * trainer.sampler.block_size
    notes |= {"layer": layer, **looks.notes, "kept_step": steps if best is None else best}
    return StageCost(steps=steps, tokens=round(steps * rows * trainer.rows.mean_length), notes=notes)


def _layer(
    policy: Policy, prompts: PromptSet, options: RefineOptions, out: Path
) -> tuple[int, dict[str, Any]]:
    """The layer to refine, and the reason where it had to be found."""
    if options.layer != "auto":
        return options.layer, {}
    layer, reason = find_layer(policy, prompts, out, options.batch_size, options.loss.pooling)
    if options.first_layer >= layer:
        raise TrainingError(
            f"`first_layer: {options.first_layer}` leaves nothing to train up to layer {layer}, which `layer: auto` has "
            "found; lower it or name a layer."
        )
    return layer, {"layer_reason": reason}


def _make_trainer(
    spec: ModelSpec,
    cut: CutModel,
    policy: Policy,
    prompts: PromptSet,
    options: RefineOptions,
    out: Path,
    validation: PromptSet | None,
    retained: PromptSet | None,
) -> ContrastiveTrainer:
    chat, pad_id = policy.chat, policy.pad_id
    rows = _encode(cut, chat, prompts, retained, options)
    sampler = BalancedBatches(
        prompts.prompts,
        options.batch_size,
        options.seed,
        matched=options.matched,
        weights=options.label_weights,
        extra=range(len(prompts), len(rows)),
        extra_size=options.retention_batch,
    )
    device = choose_device(spec)
    settings = trainer_arguments(options, out, options.steps, device, mixed=trains_mixed(spec))
    settings["per_device_train_batch_size"] = sampler.block_size
    # The layers do it themselves; the trainer would ask the cut model, which knows nothing of it.
    settings["gradient_checkpointing"] = False
    callbacks: list[Any] = [HistoryCallback(out / "history.jsonl", HISTORY)]
    if validation is not None:
        settings |= {"eval_strategy": "steps", "eval_steps": options.evaluate_every, "eval_on_start": True}
    if validation is not None and options.stopping != "none":
        metric, up = f"eval_{options.stopping}", options.stopping == "probe_auroc"
        settings |= {
            "save_strategy": "steps",
            "save_steps": options.evaluate_every,
            "load_best_model_at_end": True,
            "metric_for_best_model": metric,
            "greater_is_better": up,
        }
        callbacks.append(StopWithoutImprovement(metric, greater_is_better=up, patience=options.patience))
    looked_at = None if validation is None else _encode_validation(validation, chat, options)
    draws = options.steps * options.gradient_accumulation * sampler.block_size
    return ContrastiveTrainer(
        model=cut,
        options=options,
        sampler=sampler,
        pad_id=pad_id,
        validation=looked_at,
        held=_hold(spec, cut, policy, options, out, rows, looked_at) if draws > len(rows) else None,
        args=TrainingArguments(**settings, max_steps=options.steps, dataloader_drop_last=True),
        rows=rows,
        eval_dataset=PromptRows([], [], []) if validation is not None else None,
        callbacks=callbacks,
    )


def _hold(
    spec: ModelSpec,
    cut: CutModel,
    policy: Policy,
    options: RefineOptions,
    out: Path,
    rows: PromptRows,
    validation: Validation | None,
) -> HeldStates | None:
    """Run the layers that are not trained once on all prompts, where that comes to the same."""
    if not options.first_layer or not cut.takes_states(policy.pad_id):
        return None
    return held_states(
        policy.model,
        cut.found.path,
        options.first_layer,
        dict(enumerate([*(row["input_ids"] for row in rows.rows), *(validation[0] if validation else ())])),
        batch_size=options.batch_size,
        pad_id=policy.pad_id,
        folder=out,
        mixed=trains_mixed(spec),
    )


def _encode(
    cut: CutModel, chat: ChatFormat, prompts: PromptSet, retained: PromptSet | None, options: RefineOptions
) -> PromptRows:
    """The contrast, and behind it the retained prompts with the base model's states."""
    if not any(p.label.should_refuse for p in prompts):
        raise TrainingError(f"The contrast needs toxic prompts; {prompts.summary()}.")
    sequences = [chat.encode(p.asked) for p in prompts]
    numbers = {
        label: int(label.should_refuse) if options.labels == "toxic_or_not" else n
        for n, label in enumerate(Label)
    }
    labels = [numbers[p.label] for p in prompts]
    references: list[Tensor | None] = [None] * len(prompts)
    if options.retention and retained is not None:
        benign = [chat.encode(p.asked) for p in retained]
        references += token_states(cut, benign, chat.tokenizer.pad_token_id, options.batch_size)
        labels += [RETAINED] * len(benign)
        sequences += benign
    elif options.retention:
        raise TrainingError(
            "The retention term needs benign prompts; name `retained` sets or set retention to 0."
        )
    return PromptRows(sequences, labels, references)


def _encode_validation(
    validation: PromptSet, chat: ChatFormat, options: RefineOptions
) -> tuple[list[list[int]], list[bool], list[str]]:
    toxic = [p.label.should_refuse for p in validation]
    if len(set(toxic)) < 2:
        raise TrainingError(f"The validation prompts need toxic and other ones; {validation.summary()}.")
    sources = [p.source for p in validation]
    if options.stopping == "probe_auroc" and not probe_folds(toxic, sources):
        raise TrainingError(
            "Stopping by `probe_auroc` tests a probe on sources that it has not seen, and the validation prompts of "
            "one of the labels come from a single source; add sources or use `stopping: cross_similarity`."
        )
    return [chat.encode(p.asked) for p in validation], toxic, sources
