"""Learning dynamics: what the kernel predicts of one training step, against what the step does.

A step of gradient descent on (x_u, y_u) changes log pi(y | x_o) by eta A(x_o) K(x_o, x_u) G(x_u, y_u) to first
order (Ren & Sutherland 2025, arXiv 2407.10490, proposition 1). For the log-probability of whole replies, A K G is the
inner product of the two log-probabilities' gradients: the kernel with `rows: likelihood`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from discernment.errors import DataError
from discernment.frozen import Frozen
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.instrument import measuring
from discernment.kernel.kernel import KernelOptions
from discernment.models.logits import last_logits
from discernment.policies.policy import Policy
from discernment.prompts import Asked


class StepCheck(Frozen):
    """A predicted and a real training step.

    Attributes:
        optimizer: Whose step was taken. The equation is about `sgd`.
        learning_rate: eta.
        predicted: Predicted change of each observed log-probability, in nats.
        observed: The change that the step made.
        pearson: Their linear correlation; None where one of them does not vary.
        spearman: Their rank correlation.
        slope: Observed change for one predicted, by least squares through the origin.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    predicted: list[float]
    observed: list[float]
    pearson: float | None
    spearman: float | None
    slope: float | None


def check_learning_step(
    policy: Policy,
    observed: Sequence[tuple[Asked, str]],
    trained: Sequence[tuple[Asked, str]],
    *,
    learning_rate: float = 1e-4,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    batch_size: int = 8,
) -> StepCheck:
    """Predict one training step from the kernel, take it, compare, and take it back.

    The loss is the mean over examples of the mean negative log-probability of their reply tokens.

    Args:
        policy: The policy; its weights are as before afterwards.
        observed: Prompts and the replies whose log-probability is watched, at least two.
        trained: Prompts and replies of the training step.
        learning_rate: eta. The larger, the less the first order is worth.
        optimizer: `sgd` is what the equation is about; `adamw` takes the first step of AdamW, which scales each
            parameter's gradient to the same size.
        batch_size: Sequences a pass.

    Raises:
        DataError: If there are fewer than two observed prompts or no training example.
    """
    if len(observed) < 2 or not trained:
        raise DataError(
            f"A learning step needs two prompts to watch and one example to train on; there are {len(observed)} and "
            f"{len(trained)}."
        )
    pairs = [*observed, *trained]
    kernel = gradient_kernel(
        policy,
        [prompt for prompt, _ in pairs],
        KernelOptions(rows="likelihood", batch_size=batch_size),
        replies=[reply for _, reply in pairs],
    )
    assert kernel.blocks is not None
    products = kernel.blocks[: len(observed), 0, len(observed) :, 0]
    lengths = torch.tensor([len(policy.chat.encode_reply(*pair)) for pair in trained])
    predicted = learning_rate / len(trained) * (products / lengths).sum(1)
    with measuring(policy.model):
        before = _log_probabilities(policy, observed, batch_size)
        with _step(policy, trained, learning_rate, optimizer):
            change = _log_probabilities(policy, observed, batch_size) - before
    varies = bool(predicted.std() > 0 and change.std() > 0)
    size = float(predicted.square().sum())
    return StepCheck(
        optimizer=optimizer,
        learning_rate=learning_rate,
        predicted=predicted.tolist(),
        observed=change.tolist(),
        pearson=float(pearsonr(predicted, change).statistic) if varies else None,
        spearman=float(spearmanr(predicted, change).statistic) if varies else None,
        slope=float((predicted * change).sum()) / size if size > 0 else None,
    )


@torch.no_grad()
def _log_probabilities(policy: Policy, pairs: Sequence[tuple[Asked, str]], batch_size: int) -> Tensor:
    found = [
        _reply_log_probabilities(policy, pairs[start : start + batch_size])
        for start in range(0, len(pairs), batch_size)
    ]
    return torch.cat(found)


def _reply_log_probabilities(policy: Policy, pairs: Sequence[tuple[Asked, str]]) -> Tensor:
    """Log-probabilities log pi(y | x) of whole replies, `[pairs]`, float64."""
    prompts = policy.encode([prompt for prompt, _ in pairs])
    replies = [policy.chat.encode_reply(*pair) for pair in pairs]
    rows = [[*p, *r[:-1]] for p, r in zip(prompts, replies, strict=True)]
    with policy.acting():  # as the kernel does
        logits = last_logits(policy.model, rows, max(map(len, replies)), policy.pad_id)
    found = []
    for z, reply in zip(logits, replies, strict=True):
        chosen = torch.log_softmax(z[-len(reply) :].double(), -1)
        found.append(chosen[range(len(reply)), reply].sum())
    return torch.stack(found).cpu()


@contextmanager
def _step(
    policy: Policy, trained: Sequence[tuple[Asked, str]], learning_rate: float, optimizer: str
) -> Iterator[None]:
    """One step on the examples, taken back afterwards; the parameters' own gradients are left alone."""
    parameters = list(policy.model.parameters())
    kept = [(p.detach().clone(), p.grad) for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        for prompt, reply in trained:
            length = len(policy.chat.encode_reply(prompt, reply))
            loss = -_reply_log_probabilities(policy, [(prompt, reply)])[0] / length / len(trained)
            loss.backward()
        kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
        kind(parameters, lr=learning_rate, weight_decay=0.0).step()
        yield
    finally:
        with torch.no_grad():
            for parameter, (value, gradient) in zip(parameters, kept, strict=True):
                parameter.copy_(value)
                parameter.grad = gradient
                parameter.requires_grad_(False)
