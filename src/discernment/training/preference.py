"""Direct preference optimisation (DPO; Rafailov et al., NeurIPS 2023, arXiv 2305.18290).

Of a pair of replies to a prompt x, y is to be preferred to y'. With the model p in training and the model q that the stage
starts from, the loss is -log sigmoid(beta (log p(y|x)/q(y|x) - log p(y'|x)/q(y'|x))). The log-probabilities under q are
computed once, before the first step, so that no second model is held.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import PeftModel
from pydantic import Field
from trl import DPOConfig, DPOTrainer

from discernment.cost import StageCost
from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.models.precision import choose_device, trains_mixed
from discernment.models.quantised import activate
from discernment.policies.context import check_context
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import PromptSet
from discernment.training.adapters import check_leaving
from discernment.training.attention import quick_attention
from discernment.training.history import HistoryCallback, watch
from discernment.training.options import trainer_arguments
from discernment.training.pairs import Pair, contained, encode_pairs, find_pairs, names_of_pairs
from discernment.training.replies import ReplyOptions
from discernment.training.supervised import AlignOptions, choose_parameters
from discernment.training.trl_trainer import TrlTrainer, train_and_leave

HISTORY = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "learning_rate": "learning_rate",
}


class PreferenceOptions(AlignOptions):
    """Options of the training on pairs."""

    learning_rate: float = Field(1e-5, gt=0)
    batch_size: int = Field(4, ge=1, description="Pairs a step on each device.")
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


class PreferenceTrainer(TrlTrainer, DPOTrainer):
    """`DPOTrainer` for pairs that are encoded already, whose reference is the model as it is before the first step.

    An adapter that has learned nothing yet changes nothing, so with one the reference is the model without it. TRL turns
    all dropout off, that of an adapter too.

    Args:
        model: The model, or the adapter that is wrapped around it.
        args: As for `trl.DPOTrainer`; the reference is always computed before the training.
        **kwargs: As for `trl.DPOTrainer`; see also `TrlTrainer`.
    """

    def __init__(self, model: Any, args: DPOConfig, **kwargs: Any) -> None:
        args.precompute_ref_log_probs = True
        super().__init__(model=model, args=args, **kwargs)

    def lengths(self, rows: Dataset) -> list[int]:
        """Tokens of both replies to each prompt, with the prompt."""
        columns = (rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"])
        return [2 * len(asked) + len(y) + len(z) for asked, y, z in zip(*columns, strict=True)]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch of pairs."""
        with quick_attention(inputs["input_ids"], mixed=self.args.bf16):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Log-probabilities of a batch of pairs under the model as it is."""
        with quick_attention(inputs["input_ids"], mixed=self.args.bf16):
            return super().compute_ref_log_probs(model, inputs)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, *args: Any) -> Dataset:
        if isinstance(self.model, PeftModel):
            # TRL's copy of the new adapter would act without the adapters that stand beside a quantised model.
            self.model.delete_adapter("ref")
            activate(self.model)
        self.widen()
        self.ref_model = self.model  # as it is, without a switch of adapters
        try:
            return super()._precompute_ref_logps(*args)
        finally:
            self.ref_model = None


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
    start = start.without_rule("The training on pairs")
    found = find_pairs(seemingly, examples, refusals, answers, harmful)
    pairs = contained(*found, options.containment, options.seed)
    policy = Policy.load(start, training=True)
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


def make_trainer(
    start: PolicySpec, policy: Policy, pairs: list[Pair], options: PreferenceOptions, out: Path
) -> PreferenceTrainer:
    """The trainer, which has computed the reference.

    Args:
        start: The policy to start from.
        policy: The same, loaded for training.
        pairs: What to train on.
        options: How to train.
        out: The stage's directory.

    Raises:
        TrainingError: If nothing is left to train, or a prompt fills a row alone.
        DataError: If a pair has more tokens than the model has positions.
    """
    rows = encode_pairs(pairs, policy.chat, options.max_length)
    for column in ("chosen_ids", "rejected_ids"):
        whole = [asked + reply for asked, reply in zip(rows["prompt_ids"], rows[column], strict=True)]
        check_context(
            policy, whole, names_of_pairs(pairs), advice="lower max_length, shorten it or leave it out"
        )
    steps = max(1, round(options.epochs * len(rows) / (options.batch_size * options.gradient_accumulation)))
    settings = trainer_arguments(
        options, out, steps, choose_device(start.model), mixed=trains_mixed(start.model)
    )
    return PreferenceTrainer(
        model=choose_parameters(policy.model, start.model, options),
        args=DPOConfig(
            **settings,
            num_train_epochs=options.epochs,
            max_length=options.max_length,
            beta=options.beta,
            loss_type=[options.loss_type],
        ),
        train_dataset=rows,
        processing_class=policy.chat.tokenizer,
        callbacks=[HistoryCallback(out / "history.jsonl", HISTORY)],
    )
