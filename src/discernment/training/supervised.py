"""Stage 2: supervised safety fine-tuning (STL; Bianchi et al. 2023, arXiv 2309.07875).

The model learns general instructions with their answers and a few toxic prompts with safe refusals. The loss is
taken on the reply only.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, field_validator, model_validator

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.policies.context import names_of
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.ranks import together
from discernment.training.adapters import check_leaving, check_precision
from discernment.training.examples import TrainingRows, encode_examples
from discernment.training.options import OptimizerOptions


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
    use_liger_kernel: bool = Field(
        False,
        description="Fused layers that hold less, where the package liger-kernel is installed.",
        exclude_if=lambda use: not use,  # so stages keep the names that they had before there was this
    )

    @field_validator("use_liger_kernel")
    @classmethod
    def _liger_is_installed(cls, use: bool) -> bool:
        if use and find_spec("liger_kernel") is None:
            raise ValueError("`use_liger_kernel` needs the package liger-kernel; install it or leave it out")
        return use

    @model_validator(mode="after")
    def _adapters_leave_embeddings(self) -> Self:
        if self.lora is not None and self.train_embeddings:
            raise ValueError(
                "adapters leave the embeddings as they are; leave out `lora` or `train_embeddings`"
            )
        return self

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


@together
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
    from discernment.training.history import watch
    from discernment.training.supervised_trainer import hold_layers, make_trainer
    from discernment.training.trl_trainer import train_and_leave

    start = PolicySpec.of(start).without_rule("Alignment")
    policy = Policy.load(start, training=True)
    check_precision(policy.model, options.lora)
    check_leaving(policy.model, options.lora, out)
    torch.manual_seed(options.seed)  # adapters start from random numbers
    trainer, tokens = make_trainer(start.model, policy, make_rows(policy.chat), options, out, validation)
    hold_layers(trainer, policy, options, out)
    looks = watch(trainer, policy, probes, out, dynamics)
    train_and_leave(trainer, start, policy, options.lora, out)
    return StageCost(
        steps=trainer.state.global_step, tokens=round(tokens * options.epochs), notes=looks.notes
    )
