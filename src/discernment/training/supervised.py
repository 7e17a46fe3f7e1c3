"""Stage 2: supervised safety fine-tuning (STL; Bianchi et al. 2023, arXiv 2309.07875).

The model learns general instructions with their answers and a few toxic prompts with safe refusals. The loss is
taken on the reply only.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import TrainingError
from discernment.models.chat import ChatFormat
from discernment.models.held import HeldLayers
from discernment.models.layers import find_layers
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import choose_device, trains_mixed
from discernment.policies.context import check_context, names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Prompt, PromptSet
from discernment.training.adapters import add_adapter, check_leaving
from discernment.training.attention import quick_attention
from discernment.training.held import HeldStates, WithStates, held_states
from discernment.training.history import HistoryCallback, watch
from discernment.training.options import OptimizerOptions, trainer_arguments
from discernment.training.trl_trainer import TrlTrainer, train_and_leave

HISTORY = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate"}
IGNORED = -100
"""The label of tokens that the loss does not see."""


class TrainingRows(NamedTuple):
    """What is trained on.

    Attributes:
        rows: A column `input_ids`, and either `completion_mask`, which is 1 on tokens that are learned as they are, or
            `labels`, with the token to learn at the place of each, or `IGNORED`.
        names: What messages call each row.
    """

    rows: Dataset
    names: Sequence[str]


class AlignOptions(OptimizerOptions):
    """Options of stage 2."""

    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    epochs: float = Field(1.0, gt=0)
    max_length: int = Field(
        512, ge=8, description="Tokens of prompt and reply; longer examples are cut at the end."
    )
    frozen_layers: int | None = Field(
        None,
        ge=0,
        description="Keep so many of the first layers as they are; without a number, `dcr` keeps those of stage 1 and "
        "other methods none.",
    )
    train_embeddings: bool | None = Field(
        None,
        description="Also train the token embeddings and the head; by default where no layer is held, since embeddings "
        "that move would move the states of held layers too.",
    )

    @property
    def held(self) -> int:
        """Number of the first layers that are kept as they are."""
        return self.frozen_layers or 0

    @property
    def moves_embeddings(self) -> bool:
        """Whether the embeddings and the head are trained, where there are no adapters."""
        return self.held == 0 if self.train_embeddings is None else self.train_embeddings

    def trains_nothing(self, depth: int) -> bool:
        """Whether all is held in a model of so many layers."""
        return self.held == depth and (self.lora is not None or not self.moves_embeddings)


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


def align(
    start: PolicySpec | ModelSpec | str,
    examples: PromptSet,
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Fine-tune a model on prompts with replies, and leave a policy in `out`.

    The loss is that of the replies' tokens and nothing else: a mixture of experts is trained without its router loss. An
    interrupted call goes on from its last whole checkpoint, where `options.checkpoint_every` is set.

    Args:
        start: The policy or model to start from.
        examples: Prompts, all with a response.
        options: How to train.
        out: The stage's directory; gets `history.jsonl` and what `leave_policy` leaves.
        validation: Prompts with responses whose loss is logged once an epoch.
        probes: Prompts that are watched through the training; `out` then gets `dynamics.jsonl`.
        dynamics: How they are watched.

    Raises:
        TrainingError: If an example has no response, nothing is left to learn from, or the loss is not finite.
        ModelError: If the model cannot be loaded, or the policy has a rule.
        DataError: If no prompt among the probes is toxic, or an example has more tokens than the model has positions.
        DiskError: If there is no room for what is left; that is seen before the first step.
    """

    def whole_replies(chat: ChatFormat) -> TrainingRows:
        return TrainingRows(encode_examples(examples, chat, options.max_length), names_of(examples))

    return fine_tune(start, whole_replies, options, out, validation, probes, dynamics)


def fine_tune(
    start: PolicySpec | ModelSpec | str,
    make_rows: Callable[[ChatFormat], TrainingRows],
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None = None,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Fine-tune a model on rows that say of each token whether, and as which token, it is learned.

    All else is as in `align`, which see.

    Args:
        start: The policy or model to start from.
        make_rows: Makes the rows in the model's chat format.
        options: How to train.
        out: The stage's directory.
        validation: Prompts with responses whose loss is logged once an epoch.
        probes: Prompts that are watched through the training.
        dynamics: How they are watched.

    Raises:
        DiscernmentError: As `align` does.
    """
    start = PolicySpec.of(start).without_rule("Alignment")
    policy = Policy.load(start, training=True)
    check_leaving(policy.model, options.lora, out)
    torch.manual_seed(options.seed)  # adapters start from random numbers
    trainer, tokens = _make_trainer(start.model, policy, make_rows(policy.chat), options, out, validation)
    _hold(trainer, policy, options, out)
    looks = watch(trainer, policy, probes, out, dynamics)
    train_and_leave(trainer, start, policy, options.lora, out)
    return StageCost(
        steps=trainer.state.global_step, tokens=round(tokens * options.epochs), notes=looks.notes
    )


def _make_trainer(
    spec: ModelSpec,
    policy: Policy,
    made: TrainingRows,
    options: AlignOptions,
    out: Path,
    validation: PromptSet | None,
) -> tuple[SupervisedTrainer, int]:
    """The trainer, and the tokens of an epoch."""
    rows = _checked(policy, made)
    steps = max(1, round(options.epochs * len(rows) / (options.batch_size * options.gradient_accumulation)))
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
            eval_strategy="epoch" if validation is not None else "no",
        ),
        train_dataset=rows,
        eval_dataset=looked_at,
        processing_class=policy.chat.tokenizer,
        callbacks=[HistoryCallback(out / "history.jsonl", HISTORY)],
    )
    return trainer, sum(len(ids) for ids in rows["input_ids"])


def _hold(trainer: SupervisedTrainer, policy: Policy, options: AlignOptions, out: Path) -> None:
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


def encode_examples(examples: PromptSet, chat: ChatFormat, max_length: int) -> Dataset:
    """Token ids with a mask that is 1 on the reply.

    Args:
        examples: Prompts with responses.
        chat: The model's chat format; the same one renders the prompts in the evaluation.
        max_length: Tokens of prompt and reply together.

    Returns:
        Columns `input_ids` and `completion_mask`, one row an example, in order.

    Raises:
        TrainingError: If a prompt has no response, or fills `max_length` alone.
    """
    rows: list[dict[str, Any]] = []
    for example, name in zip(examples, names_of(examples), strict=True):
        if not example.response:
            raise TrainingError(
                f"The prompt {name} has no response to train on; choose sets with responses for the alignment."
            )
        prompt, reply = encode_exchange(example, example.response, name, chat, max_length)
        rows.append({"input_ids": prompt + reply, "completion_mask": [0] * len(prompt) + [1] * len(reply)})
    if not rows:
        raise TrainingError(f"{examples.provenance.name} has no example to train on.")
    return Dataset.from_list(rows)


def encode_exchange(
    prompt: Prompt, reply: str, name: str, chat: ChatFormat, max_length: int
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a reply to it, which is cut where the two are too long.

    Args:
        prompt: The prompt.
        reply: The reply.
        name: What a message calls the prompt.
        chat: The model's chat format.
        max_length: Tokens of prompt and reply together.

    Raises:
        TrainingError: If the prompt fills `max_length` alone.
    """
    asked, said = chat.encode(prompt.asked), chat.encode_reply(prompt.asked, reply)
    if len(asked) >= max_length:
        raise TrainingError(
            f"The prompt {name} has {len(asked)} tokens and leaves no room for its reply; "
            f"raise max_length (now {max_length}) or leave it out."
        )
    return asked, said[: max_length - len(asked)]


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
        for embedding in (network.get_input_embeddings(), network.get_output_embeddings()):
            if embedding is not None:
                embedding.requires_grad_(False)
    return network
