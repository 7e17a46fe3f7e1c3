"""The trainer of stage 2: the loss on replies alone, on the layers that are not held."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from discernment.errors import TrainingError
from discernment.models.held import HeldLayers
from discernment.models.layers import find_layers, modules_before
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, trains_mixed
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet
from discernment.ranks import sharing
from discernment.training.adapters import add_adapter
from discernment.training.attention import quick_attention
from discernment.training.examples import IGNORED, TrainingRows, encode_examples
from discernment.training.held import HeldStates, WithStates, held_states
from discernment.training.history import HistoryCallback
from discernment.training.options import steps_of, trainer_arguments
from discernment.training.supervised import AlignOptions
from discernment.training.trl_trainer import TrlTrainer

HISTORY = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate"}


class SupervisedTrainer(TrlTrainer, SFTTrainer):
    """`SFTTrainer` for the loss on the reply alone; only the reply goes through the head.

    Args:
        model: The model, or the adapter that is wrapped around it.
        args: As for `trl.SFTTrainer`.
        **kwargs: As for `trl.SFTTrainer`; see also `TrlTrainer`.
    """

    data_collator: Any

    def __init__(self, model: PreTrainedModel | PeftModel, args: SFTConfig, **kwargs: Any) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.held: HeldLayers | None = None
        if sharing() > 1:
            first = self.train_dataset[0].items()
            short = {name: value[:2] if isinstance(value, list) else value for name, value in first}
            self.train_dataset = self.train_dataset.add_item({**short, "labels": [IGNORED] * 2})
            self.fills = True

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss on the reply, of which alone logits are made; from stored states where the batch brings them."""
        given = dict(inputs)
        held, labels = given.pop("held", None), given.pop("labels")[:, 1:]
        counted = labels != IGNORED
        given["shift_labels"] = labels[counted][None]

        def keep(decoder: nn.Module, arguments: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[:, :-1][counted][None]
            return output

        own = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        handle = own.base_model.register_forward_hook(keep)
        attention = quick_attention(inputs["input_ids"], mixed=self.args.bf16)
        try:
            with attention, self.held.recalled(held) if self.held else nullcontext():
                return super().compute_loss(model, given, *args, **kwargs)
        finally:
            handle.remove()

    def hold(self, layers: HeldLayers, states: HeldStates) -> None:
        """Train on stored states, without running the held layers again.

        Args:
            layers: The held layers.
            states: What they put out, by the number in the column `row` of both data sets.
        """
        self.held, self.data_collator = layers, WithStates(self.data_collator, states)


def make_trainer(
    spec: ModelSpec,
    policy: Policy,
    made: TrainingRows,
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None,
) -> tuple[SupervisedTrainer, int]:
    """The trainer of a model, and the tokens of an epoch.

    Args:
        spec: Where the model came from.
        policy: The model with its chat format.
        made: What is trained on.
        options: How to train.
        out: The stage's directory.
        validation: Prompts with responses whose loss is logged once an epoch.

    Raises:
        TrainingError: If nothing is left to train, or a validation prompt has no response.
        DataError: If an example has more tokens than the model has positions.
    """
    rows = _checked(policy, made)
    steps = steps_of(options, len(rows), options.epochs)
    looked_at = None
    if validation is not None:
        encoded = encode_examples(validation, policy.chat, options.max_length)
        looked_at = _checked(policy, TrainingRows(encoded, names_of(validation)), first=len(rows))
    trainer = SupervisedTrainer(
        model=choose_parameters(policy.model, spec, options),
        args=SFTConfig(
            **trainer_arguments(options, out, steps, choose_device(spec), mixed=trains_mixed(spec)),
            num_train_epochs=options.epochs,
            max_length=options.max_length,
            completion_only_loss=True,
            use_liger_kernel=options.use_liger_kernel,
            eval_strategy="epoch" if validation is not None else "no",
        ),
        train_dataset=rows,
        eval_dataset=looked_at,
        processing_class=policy.chat.tokenizer,
        callbacks=[HistoryCallback(out / "history.jsonl", HISTORY)],
    )
    return trainer, sum(len(ids) for ids in rows["input_ids"])


def hold_layers(trainer: SupervisedTrainer, policy: Policy, options: AlignOptions, out: Path) -> None:
    """Run the held layers once an example, where that comes to the same and the examples are seen again."""
    network, pad_id = policy.model, policy.pad_id
    if (
        not options.held
        or options.epochs <= 1
        or options.gradient_checkpointing
        or trainer.args.world_size > 1
    ):
        return

    def logits(input_ids: Tensor, attention_mask: Tensor, states: Tensor | None) -> Tensor:
        run: Any = network
        with held.recalled(states):
            found: Tensor = run(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return found

    found = find_layers(network, policy.layer_path)
    held = HeldLayers(found.layers[: options.held])
    if not held.can_be_recalled(network, network.config, "logits", logits, pad_id):
        return
    sets = [rows for rows in (trainer.train_dataset, trainer.eval_dataset) if rows is not None]
    states = held_states(
        network,
        found.path,
        options.held,
        {row: ids for rows in sets for row, ids in zip(rows["row"], rows["input_ids"], strict=True)},
        batch_size=options.batch_size,
        pad_id=pad_id,
        folder=out,
        mixed=trainer.args.bf16,
    )
    trainer.hold(held, states)


def _checked(policy: Policy, made: TrainingRows, first: int = 0) -> Dataset:
    """TrainingRows, all of which the model can read, numbered from `first` in the column `row`."""
    rows, advice = made.rows, "lower max_length, shorten it or leave it out"
    check_context(policy, rows["input_ids"], made.names, advice=advice)
    return rows.add_column("row", list(range(first, first + len(rows))))


def choose_parameters(
    network: PreTrainedModel, spec: ModelSpec, options: AlignOptions
) -> PreTrainedModel | PeftModel:
    """Say which weights are trained, and put the adapter on, where that is it.

    Raises:
        TrainingError: If nothing is left to train.
        ModelError: If more layers are held than there are.
    """
    layers = find_layers(network, spec.layers)
    if options.held:
        layers.check(options.held)
    if options.trains_nothing(len(layers.layers)):
        raise TrainingError(f"`frozen_layers: {options.held}` leaves nothing to train; freeze fewer layers.")
    if options.lora is not None:
        return add_adapter(network, layers, range(options.held + 1, len(layers.layers) + 1), options.lora)
    network.requires_grad_(True)
    layers.layers[: options.held].requires_grad_(False)
    if not options.moves_embeddings:
        # Of some models learned positions or a norm stand there too, which would move the states of held layers.
        before = modules_before(layers) if options.held else []
        for module in (network.get_input_embeddings(), network.get_output_embeddings(), *before):
            if module is not None:
                module.requires_grad_(False)
    return network
