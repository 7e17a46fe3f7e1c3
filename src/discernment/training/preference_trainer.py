"""The trainer on pairs of replies: TRL's, on pairs that are encoded as in stage 2."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from discernment.models.precision import choose_device, trains_mixed
from discernment.models.quantised import activate
from discernment.policies.context import check_context
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.training.attention import quick_attention
from discernment.training.history import HistoryCallback
from discernment.training.options import steps_of, trainer_arguments
from discernment.training.pairs import Pair, encode_pairs, names_of_pairs
from discernment.training.preference import PreferenceOptions
from discernment.training.supervised_trainer import choose_parameters
from discernment.training.trl_trainer import TrlTrainer

HISTORY = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "learning_rate": "learning_rate",
}


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
    steps = steps_of(options, len(rows), options.epochs)
    settings = trainer_arguments(
        options, out, steps, choose_device(start.model), mixed=trains_mixed(start.model)
    )
    return PreferenceTrainer(
        model=choose_parameters(policy.model, start.model, options),
        args=DPOConfig(
            **settings,
            num_train_epochs=options.epochs,
            use_liger_kernel=options.use_liger_kernel,
            max_length=options.max_length,
            beta=options.beta,
            loss_type=[options.loss_type],
        ),
        train_dataset=rows,
        processing_class=policy.chat.tokenizer,
        callbacks=[HistoryCallback(out / "history.jsonl", HISTORY)],
    )
