"""Direct preference optimisation (DPO; Rafailov et al., NeurIPS 2023, arXiv 2305.18290).

Of a pair of replies to a prompt x, y is to be preferred to y'. With the model p in training and the model q that the stage
starts from, the loss is -log sigmoid(beta (log p(y|x)/q(y|x) - log p(y'|x)/q(y'|x))). The log-probabilities under q are
computed once, before the first step, so that no second model is held.
"""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.adapters import check_leaving, check_precision
from discernment.training.pairs import contained, find_pairs
from discernment.training.replies import ReplyOptions
from discernment.training.supervised import AlignOptions


class PreferenceOptions(AlignOptions):
    """Options of the training on pairs."""

    learning_rate: float = Field(1e-5, gt=0)
    batch_size: int = Field(4, ge=1, description="Pairs a step.")
    beta: float = Field(
        0.1, gt=0, description="How close the model is held to the one that the stage starts from."
    )
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field(
        "sigmoid", description="`sigmoid` is DPO; `hinge` and `ipo` are losses of others on the same pairs."
    )
    containment: float | None = Field(
        0.5, ge=0, lt=1, description="Share of toxic pairs among all; none takes all pairs that there are."
    )
    written: ReplyOptions = Field(
        default_factory=ReplyOptions, description="How replies to seemingly toxic prompts are written."
    )


def prefer(
    start: PolicySpec,
    examples: PromptSet,
    seemingly: PromptSet,
    refusals: Path,
    answers: Path | None,
    harmful: Path | None,
    options: PreferenceOptions,
    out: Path,
    probes: PromptSet | None = None,
    dynamics: DynamicsOptions | None = None,
) -> StageCost:
    """Train a model to prefer answers to refusals of seemingly toxic prompts, and the reverse for toxic ones.

    An interrupted call goes on from its last whole checkpoint, where `options.checkpoint_every` is set.

    Args:
        start: The policy to start from, which is also the reference.
        examples: Toxic prompts with safe refusals.
        seemingly: Seemingly toxic prompts, perhaps with answers.
        refusals: Where replies of `start` to `seemingly` lie; see `find_pairs`.
        answers: Where replies of another to them lie.
        harmful: Where replies to `examples` lie.
        options: How to train.
        out: The stage's directory; gets `history.jsonl` and what `leave_policy` leaves.
        probes: Prompts that are watched through the training; `out` then gets `dynamics.jsonl`.
        dynamics: How they are watched.

    Raises:
        TrainingError: If there are no pairs, nothing is left to train, or the loss is not finite.
        ModelError: If the model cannot be loaded, or the policy has a rule.
        DataError: If no prompt among the probes is toxic, or a pair has more tokens than the model has positions.
        DiskError: If there is no room for what is left; that is seen before the first step.
    """
    from discernment.training.history import watch
    from discernment.training.preference_trainer import make_trainer
    from discernment.training.trl_trainer import train_and_leave

    start = start.without_rule("The training on pairs")
    found = find_pairs(seemingly, examples, refusals, answers, harmful)
    pairs = contained(*found, options.containment, options.seed)
    policy = Policy.load(start, training=True)
    check_precision(policy.model, options.lora)
    check_leaving(policy.model, options.lora, out)
    torch.manual_seed(options.seed)  # adapters start from random numbers
    trainer = make_trainer(start, policy, pairs, options, out)
    looks = watch(trainer, policy, probes, out, dynamics)
    tokens = sum(trainer.lengths(trainer.train_dataset))
    train_and_leave(trainer, start, policy, options.lora, out)
    toxic = sum(pair.prompt.label.should_refuse for pair in pairs)
    return StageCost(
        steps=trainer.state.global_step,
        tokens=round(tokens * options.epochs),
        notes={
            "pairs": {"seemingly_toxic": len(pairs) - toxic, "toxic": toxic},
            "pairs_found": {"seemingly_toxic": len(found[0]), "toxic": len(found[1])},
            **looks.notes,
        },
    )
