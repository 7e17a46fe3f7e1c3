"""Stage 1 of DCR: contrastive refinement of the first l layers (Lu et al. 2026, arXiv 2603.03323, section 4).

The model is cut after layer l. The loss pulls the layer's states of prompts with one label together and pushes
those of different labels apart; everything after layer l stays as it is, byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsCallback, DynamicsOptions
from discernment.diagnosis.separability import probe_folds, separation
from discernment.errors import TrainingError
from discernment.models.batch import pad
from discernment.models.chat import ChatFormat
from discernment.models.cut import CutModel
from discernment.models.loading import choose_device, load_chat, load_model, trains_mixed
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import Label, PromptSet
from discernment.training.adapters import add_adapter, keep_adapter
from discernment.training.checkpoints import latest_checkpoint
from discernment.training.history import HistoryCallback, StopWithoutImprovement, show_progress
from discernment.training.layer import LayerChoice, find_layer
from discernment.training.losses import ContrastiveLoss, LossOptions, pool
from discernment.training.options import OptimizerOptions, trainer_arguments
from discernment.training.sampler import BalancedBatches

__all__ = ["ContrastiveTrainer", "RefineOptions", "refine"]

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


class RefineOptions(OptimizerOptions):
    """Options of stage 1."""

    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=4)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "constant_with_warmup"
    layer: LayerChoice = Field(
        description="l: the last layer that is trained; its output is what the loss sees. `auto` finds it."
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


class PromptRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Encoded prompts with their label numbers and, for retained ones, the base model's states."""

    def __init__(
        self, sequences: Sequence[list[int]], labels: Sequence[int], references: Sequence[Tensor | None]
    ):
        self.rows: list[dict[str, Any]] = [
            {"input_ids": ids, "label": label, "reference": reference}
            for ids, label, reference in zip(sequences, labels, references, strict=True)
        ]

    @property
    def mean_length(self) -> float:
        """Mean number of tokens a row."""
        return sum(len(row["input_ids"]) for row in self.rows) / max(1, len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Collator:
    """Right-padded batches; the references are padded like the tokens.

    Args:
        pad_id: The padding token.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Make one batch of rows."""
        batch = {
            **pad([r["input_ids"] for r in rows], self.pad_id, "right")._asdict(),
            "labels": torch.tensor([r["label"] for r in rows]),
        }
        references = [r["reference"] for r in rows if r["reference"] is not None]
        if references:
            batch["references"] = nn.utils.rnn.pad_sequence(references, batch_first=True)
        return batch


class ContrastiveTrainer(Trainer):
    """Trains a cut model with a contrastive loss on the states of its last layer.

    Args:
        model: The cut model.
        options: Options of stage 1.
        rows: The training rows.
        sampler: Gives their order.
        pad_id: The padding token.
        validation: Encoded validation prompts: token ids, whether each is toxic, and their sources.
        **kwargs: As for `transformers.Trainer`.
    """

    def __init__(
        self,
        model: CutModel,
        options: RefineOptions,
        rows: PromptRows,
        sampler: BalancedBatches,
        pad_id: int,
        validation: tuple[list[list[int]], list[bool], list[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, data_collator=Collator(pad_id), train_dataset=rows, **kwargs)
        self.rows = rows
        self.cut = model
        self.pad_id = pad_id
        self.options = options
        self.sampler = sampler
        self.validation = validation
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
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
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
        states = pooled_states(self.cut, sequences, self.options, self.pad_id)
        found = separation(states, toxic, sources, centre=self.options.loss.centre)
        metrics = {"eval_within_similarity": found.within, "eval_cross_similarity": found.cross}
        if found.probe_auroc is not None:
            metrics["eval_probe_auroc"] = found.probe_auroc
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def retention(hidden: Tensor, reference: Tensor, attention_mask: Tensor) -> Tensor:
    """How far states have moved from the base model's, relative to the latter's size, averaged over tokens.

    Args:
        hidden: States now, `[batch, length, hidden]`.
        reference: States of the base model, `[batch, length', hidden]` with `length' <= length`.
        attention_mask: 1 for tokens, padding on the right, `[batch, length]`.
    """
    length = reference.shape[1]
    hidden, mask = hidden[:, :length].float(), attention_mask[:, :length].bool()
    moved = (hidden - reference).square().sum(-1)[mask]
    return (moved / reference.square().sum(-1)[mask].clamp(min=1e-12)).mean()


@torch.no_grad()
def pooled_states(
    model: nn.Module, sequences: list[list[int]], options: RefineOptions, pad_id: int
) -> Tensor:
    """Pooled states after layer l of encoded prompts, `[prompts, hidden]`, on the CPU, in the given order."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()  # dropout would blur what is measured
    states = []
    for start in range(0, len(sequences), options.batch_size):
        batch = pad(sequences[start : start + options.batch_size], pad_id, "right", device)
        states.append(pool(model(*batch), batch.attention_mask, options.loss.pooling).cpu())
    model.train(training)
    return torch.cat(states)


def refine(
    model: ModelSpec,
    prompts: PromptSet,
    options: RefineOptions,
    out: Path,
    validation: PromptSet | None = None,
    retained: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Refine `model` and save it whole to `out/model`.

    Args:
        model: The base model.
        prompts: The contrast: prompts of at least two labels.
        options: How to train.
        out: The stage's directory; gets `model/`, `history.jsonl`, and for `layer: auto` also `layer.json`.
        validation: Prompts by which the best step is kept and the stage stops early.
        retained: Benign prompts whose states are kept near the base model's, where `options.retention` is above 0.
        probes: Prompts that are watched through the training; `out` then gets `dynamics.jsonl`.
        dynamics: How they are watched.

    Raises:
        TrainingError: If the contrast has one label only, or the loss is not finite.
        ModelError: If the model cannot be loaded or cut, or the layer is out of range.
        DataError: If no prompt among the probes is toxic.
    """
    chat = load_chat(model)
    network = load_model(model, training=True)
    policy = Policy(network, chat, model.model)
    layer, notes = options.layer, dict[str, Any]()
    if layer == "auto":
        layer, notes["layer_reason"] = find_layer(
            policy, validation or prompts, out, options.batch_size, options.loss.pooling, model.layers
        )
    torch.manual_seed(options.seed)
    if options.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    with CutModel(network, layer, path=model.layers, train_embeddings=options.train_embeddings) as cut:
        adapted = None
        if options.lora is not None:
            adapted = add_adapter(network, cut.found, range(1, layer + 1), options.lora)
        trainer = _make_trainer(model, cut, chat, prompts, options, out, validation, retained)
        show_progress(trainer)
        looks = None
        if probes is not None:
            looks = DynamicsCallback(policy, probes, out, dynamics, cut.whole)
            trainer.add_callback(looks)
        checkpoint = latest_checkpoint(out)
        # A look that was taken before the interruption would count twice towards stopping.
        trainer.args.eval_on_start = trainer.args.eval_on_start and checkpoint is None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if adapted is not None and options.lora is not None:
            keep_adapter(adapted, options.lora, out)
    network.save_pretrained(out / "model")
    chat.tokenizer.save_pretrained(out / "model")
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    if looks is not None:
        notes["look_seconds"] = round(looks.seconds, 2)
    best = trainer.state.best_global_step
    return StageCost(
        steps=trainer.state.global_step,
        tokens=round(
            trainer.state.global_step
            * options.gradient_accumulation
            * trainer.sampler.block_size
            * trainer.rows.mean_length
        ),
        notes={"layer": layer, **notes, "kept_step": trainer.state.global_step if best is None else best},
    )


def _make_trainer(
    spec: ModelSpec,
    cut: CutModel,
    chat: ChatFormat,
    prompts: PromptSet,
    options: RefineOptions,
    out: Path,
    validation: PromptSet | None,
    retained: PromptSet | None,
) -> ContrastiveTrainer:
    pad_id = chat.tokenizer.pad_token_id
    if not any(p.label.should_refuse for p in prompts):
        raise TrainingError(f"The contrast needs toxic prompts; {prompts.summary()}.")
    sequences = [chat.encode(p.text) for p in prompts]
    numbers = {
        label: int(label.should_refuse) if options.labels == "toxic_or_not" else n
        for n, label in enumerate(Label)
    }
    labels = [numbers[p.label] for p in prompts]
    references: list[Tensor | None] = [None] * len(prompts)
    if options.retention and retained is not None:
        benign = [chat.encode(p.text) for p in retained]
        references += _token_states(cut, benign, options, pad_id)
        labels += [RETAINED] * len(benign)
        sequences += benign
    elif options.retention:
        raise TrainingError(
            "The retention term needs benign prompts; name `retained` sets or set retention to 0."
        )
    sampler = BalancedBatches(
        prompts.prompts,
        options.batch_size,
        options.seed,
        matched=options.matched,
        weights=options.label_weights,
        extra=range(len(prompts), len(sequences)),
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
        if options.stopping != "none":
            settings |= {
                "save_strategy": "steps",
                "save_steps": options.evaluate_every,
                "load_best_model_at_end": True,
                "metric_for_best_model": f"eval_{options.stopping}",
                "greater_is_better": options.stopping == "probe_auroc",
            }
            callbacks.append(
                StopWithoutImprovement(
                    f"eval_{options.stopping}",
                    greater_is_better=options.stopping == "probe_auroc",
                    patience=options.patience,
                )
            )
    return ContrastiveTrainer(
        model=cut,
        options=options,
        sampler=sampler,
        pad_id=pad_id,
        validation=None if validation is None else _encode_validation(validation, chat, options),
        args=TrainingArguments(**settings, max_steps=options.steps, dataloader_drop_last=True),
        rows=PromptRows(sequences, labels, references),
        eval_dataset=PromptRows([], [], []) if validation is not None else None,
        callbacks=callbacks,
    )


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
    return [chat.encode(p.text) for p in validation], toxic, sources


@torch.no_grad()
def _token_states(
    cut: CutModel, sequences: list[list[int]], options: RefineOptions, pad_id: int
) -> list[Tensor]:
    device = next(cut.parameters()).device
    states: list[Tensor] = []
    for start in range(0, len(sequences), options.batch_size):
        batch = pad(sequences[start : start + options.batch_size], pad_id, "right", device)
        hidden = cut(*batch).float().cpu()
        states += [row[mask.bool()] for row, mask in zip(hidden, batch.attention_mask.cpu(), strict=True)]
    return states
