"""The trainer of stage 1: batches of balanced labels through the cut model, and the contrastive loss on what comes out."""

from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from discernment.diagnosis.separability import probe_folds, separation
from discernment.errors import TrainingError
from discernment.models.chat import ChatFormat
from discernment.models.cut import CutModel
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, trains_mixed
from discernment.policies.policy import Policy
from discernment.prompts import Label, PromptSet
from discernment.ranks import on_first, several
from discernment.training.all_devices import mean_over_devices, of_all_devices, part_of_mean
from discernment.training.batches import BalancedBatches, Collator, PromptRows
from discernment.training.contrastive import RefineOptions
from discernment.training.cut_states import READ, batch_states, pooled_states, token_states
from discernment.training.held import HeldStates, WithStates, held_states
from discernment.training.history import HistoryCallback, StopWithoutImprovement, TellsEpoch
from discernment.training.last_steps import AverageLastSteps, LastSteps
from discernment.training.losses import ContrastiveLoss, pool, retention
from discernment.training.micro_batches import Rows, in_length_groups, in_micro_batches, padded_to
from discernment.training.options import trainer_arguments
from discernment.training.sharding import shards
from discernment.training.stage_trainer import StageTrainer

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


class ContrastiveTrainer(StageTrainer):
    """Trains a cut model with a contrastive loss on the states of its last layer.

    Args:
        model: The cut model.
        options: Options of stage 1.
        rows: The training rows.
        sampler: Gives their order.
        loss: The contrastive loss.
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
        loss: ContrastiveLoss,
        pad_id: int,
        validation: Validation | None = None,
        held: HeldStates | None = None,
        **kwargs: Any,
    ) -> None:
        collate: Any = Collator(pad_id) if held is None else WithStates(Collator(pad_id), held)
        model.add_module("contrastive_loss", loss)  # so that what it remembers is in the checkpoints
        super().__init__(model=model, data_collator=collate, train_dataset=rows, **kwargs)
        self.rows = rows
        self.cut = model
        self.pad_id = pad_id
        self.options = options
        self.sampler = sampler
        self.validation = validation
        self.held = held
        self.contrastive_loss = loss
        self.parts: dict[str, list[float]] = {"contrast": [], "retention": []}
        """Of each part of the loss, what its blocks gave since the last step."""

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
        labels, mask = inputs["labels"], inputs["attention_mask"]
        states, retained = self._states(model, inputs)
        states, every_label = of_all_devices(states), of_all_devices(labels)
        every = every_label != RETAINED
        sources = of_all_devices(inputs["sources"])[every] if self.options.loss.worst_sources else None
        loss = self.contrastive_loss(states[every], every_label[every], sources)
        self.parts["contrast"].append(float(loss.detach()))
        if self.options.retention:
            kept = mask[labels == RETAINED]
            mean = states.new_zeros(())  # the devices that have the end of the batch have all of it
            if "references" in inputs:
                mean = retention(retained, inputs["references"], kept)
            drift = part_of_mean(mean, kept.sum())
            self.parts["retention"].append(mean_over_devices(drift))
            loss = loss + self.options.retention * drift
        return (loss, states) if return_outputs else loss

    def _states(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A pooled state of each row (of the retained ones it means nothing), and of these the states of all tokens."""
        size, mixed, pooling = self.options.micro_batch_size, self.args.bf16, self.options.loss.pooling
        contrasted = batch["labels"] != RETAINED
        read = [name for name in READ if name in batch]

        def pooled(rows: Rows) -> Tensor:
            return pool(batch_states(model, rows, mixed=mixed), rows["attention_mask"], pooling)

        # Processes wait for each other in every pass, so all have to take equally many.
        if size is None and "references" not in batch and not several():
            states = in_length_groups({name: batch[name] for name in read}, pooled)
            return states, states[:0]
        if size is None:
            hidden = batch_states(model, batch, mixed=mixed)
            return pool(hidden, batch["attention_mask"], pooling), hidden[~contrasted]

        def tokens(rows: Rows) -> Tensor:
            return padded_to(batch["references"].shape[1], batch_states(model, rows, mixed=mixed))

        found = in_micro_batches(self.cut, {n: batch[n][contrasted] for n in read}, size, pooled)
        states = found.new_zeros(len(contrasted), found.shape[1]).index_put((contrasted,), found)
        if "references" not in batch:
            return states, states[:0]
        return states, in_micro_batches(self.cut, {n: batch[n][~contrasted] for n in read}, size, tokens)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss to what the trainer logs: of a step's blocks the mean, as of the loss."""
        parts: dict[str, float] = {}
        if "loss" in logs:
            parts = {name: fmean(values) for name, values in self.parts.items() if values}
            self.parts = {name: [] for name in self.parts}
        super().log({**logs, **parts}, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Similarity within and across the labels of the validation prompts, and a linear probe's AUROC."""
        assert self.validation is not None
        sequences, toxic, sources = self.validation
        behind = len(self.rows)
        held = None if self.held is None else [self.held[behind + n] for n in range(len(sequences))]
        states = pooled_states(
            self.cut, sequences, self.pad_id, self.options.rows_at_once, self.options.loss.pooling, held
        )
        found = on_first(separation, states, toxic, sources, centre=self.options.loss.centre)
        metrics = {"eval_within_similarity": found.within, "eval_cross_similarity": found.cross}
        if found.probe_auroc is not None:
            metrics["eval_probe_auroc"] = found.probe_auroc
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def make_trainer(
    spec: ModelSpec,
    cut: CutModel,
    policy: Policy,
    prompts: PromptSet,
    options: RefineOptions,
    out: Path,
    validation: PromptSet | None,
    retained: PromptSet | None,
) -> ContrastiveTrainer:
    """The trainer of a cut model.

    Args:
        spec: Where the model came from.
        cut: The cut model.
        policy: The model with its chat format.
        prompts: The contrast.
        options: Options of stage 1.
        out: The stage's directory.
        validation: Prompts by which the best step is kept and the stage stops early.
        retained: Benign prompts for the retention term.

    Raises:
        TrainingError: If a label is missing among the prompts, or the retention term lacks its own.
    """
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
        accumulation=options.gradient_accumulation,
    )
    settings = trainer_arguments(options, out, options.steps, choose_device(spec), mixed=trains_mixed(spec))
    # The layers do it themselves; the trainer would ask the cut model, which knows nothing of it.
    settings["gradient_checkpointing"] = False
    history = HistoryCallback(out / "history.jsonl", HISTORY)
    callbacks: list[Any] = [history, TellsEpoch(sampler), *_averaging(options, cut)]
    if validation is not None:
        settings |= {"eval_strategy": "steps", "eval_steps": options.evaluate_every, "eval_on_start": True}
        callbacks += _stopping(options, settings)
    looked_at = None if validation is None else _encode_validation(validation, chat, options)
    repeated = options.steps * options.gradient_accumulation * sampler.block_size > len(rows)
    return ContrastiveTrainer(
        model=cut,
        options=options,
        sampler=sampler,
        loss=_loss(options, policy, prompts),
        pad_id=pad_id,
        validation=looked_at,
        held=_hold(spec, cut, policy, options, out, rows, looked_at) if repeated else None,
        args=TrainingArguments(**settings, max_steps=options.steps, dataloader_drop_last=True),
        rows=rows,
        eval_dataset=PromptRows([], [], []) if validation is not None else None,
        callbacks=callbacks,
    )


def _loss(options: RefineOptions, policy: Policy, prompts: PromptSet) -> ContrastiveLoss:
    width = policy.model.config.get_text_config().hidden_size
    return ContrastiveLoss(options.loss, width, len({p.source for p in prompts}))


def _averaging(options: RefineOptions, cut: CutModel) -> list[TrainerCallback]:
    """What averages the last steps, as a part of the cut model."""
    if not options.average_last:
        return []
    last = LastSteps(cut, options.average_last)
    cut.add_module("last_steps", last)
    return [AverageLastSteps(last)]


def _stopping(options: RefineOptions, settings: dict[str, Any]) -> list[TrainerCallback]:
    """What stops the stage early; the settings are told to keep the best step."""
    if options.stopping == "none":
        return []
    metric, up = f"eval_{options.stopping}", options.stopping == "probe_auroc"
    settings |= {
        "save_strategy": "steps",
        "save_steps": options.evaluate_every,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": up,
    }
    return [StopWithoutImprovement(metric, greater_is_better=up, patience=options.patience)]


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
    if not options.first_layer or shards() or not cut.takes_states(policy.pad_id):
        return None
    return held_states(
        policy.model,
        cut.found.path,
        options.first_layer,
        dict(enumerate([*(row["input_ids"] for row in rows.rows), *(validation[0] if validation else ())])),
        batch_size=options.rows_at_once,
        pad_id=policy.pad_id,
        folder=out,
        mixed=trains_mixed(spec),
    )


def _encode(
    cut: CutModel, chat: ChatFormat, prompts: PromptSet, retained: PromptSet | None, options: RefineOptions
) -> PromptRows:
    """The contrast, and behind it the retained prompts with the states that they had at the start."""
    if not any(p.label.should_refuse for p in prompts):
        raise TrainingError(f"The contrast needs toxic prompts; {prompts.summary()}.")
    sequences = [chat.encode(p.asked) for p in prompts]
    numbers = {
        label: int(label.should_refuse) if options.labels == "toxic_or_not" else n
        for n, label in enumerate(Label)
    }
    labels = [numbers[p.label] for p in prompts]
    number = {source: n for n, source in enumerate(dict.fromkeys(p.source for p in prompts))}
    sources = [number[p.source] for p in prompts]
    references: list[Tensor | None] = [None] * len(prompts)
    if options.retention and retained is not None:
        benign = [chat.encode(p.asked) for p in retained]
        references += token_states(cut, benign, chat.tokenizer.pad_token_id, options.rows_at_once)
        labels += [RETAINED] * len(benign)
        sources += [0] * len(benign)  # of any source: the contrast leaves them out
        sequences += benign
    elif options.retention:
        raise TrainingError(
            "The retention term needs benign prompts; name `retained` sets or set retention to 0."
        )
    return PromptRows(sequences, labels, references, sources)


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
