"""The contrastive loss of stage 1: from the hidden states of layer l to one number.

The losses themselves come from pytorch-metric-learning. Two prompts of one label are a positive pair, two prompts
of different labels a negative one (DCR, Lu et al. 2026, arXiv 2603.03323).
"""

from typing import Literal

import torch
from pytorch_metric_learning import losses as metric_losses
from torch import Tensor, nn

from discernment.training.options import LossOptions
from discernment.training.worst_sources import WorstSources


def pool(hidden: Tensor, attention_mask: Tensor, how: Literal["last", "mean"]) -> Tensor:
    """One state a prompt.

    Args:
        hidden: Hidden states, `[batch, length, hidden]`.
        attention_mask: 1 for tokens, 0 for padding on either side, `[batch, length]`.
        how: `last` takes the last token that is not padding, `mean` averages over the tokens.

    Returns:
        `[batch, hidden]`, float32.
    """
    hidden = hidden.float()
    if how == "mean":
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


class GlobalCircleLoss(metric_losses.CircleLoss):
    """Circle loss with one term over all pairs of the batch, as in the reference code of Sun et al. 2020 (eq. 6).

    softplus(logsumexp over negatives + logsumexp over positives); pytorch-metric-learning has one term an anchor.
    """

    def _compute_loss(self, mat: Tensor, pos_mask: Tensor, neg_mask: Tensor) -> dict[str, dict[str, object]]:
        once = torch.ones_like(mat, dtype=torch.bool).triu(1)
        positive, negative = mat[pos_mask.bool() & once], mat[neg_mask.bool() & once]
        positive = -self.gamma * torch.relu(self.op - positive.detach()) * (positive - self.delta_p)
        negative = self.gamma * torch.relu(negative.detach() - self.on) * (negative - self.delta_n)
        loss = nn.functional.softplus(positive.logsumexp(0) + negative.logsumexp(0))
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


class Memory(metric_losses.CrossBatchMemory):
    """Contrast with the last states, this batch's and those of past ones (Wang et al. 2020, arXiv 1912.06798).

    How many states have come is one of its buffers, as the states are, so that it goes on from a checkpoint.

    Args:
        loss: The loss.
        width: Entries of a state.
        size: States that are remembered.
    """

    come: Tensor

    def __init__(self, loss: nn.Module, width: int, size: int) -> None:
        super().__init__(loss, width, memory_size=size)
        self.register_buffer("come", torch.zeros((), dtype=torch.long))

    def forward(self, states: Tensor, labels: Tensor) -> Tensor:
        """The loss of each prompt of a batch against what is remembered, the batch included."""
        self.queue_idx, self.has_been_filled = (
            int(self.come) % self.memory_size,
            int(self.come) >= self.memory_size,
        )
        self.come += len(states)
        loss: Tensor = super().forward(states, labels)
        return loss


class ContrastiveLoss(nn.Module):
    """Contrastive loss on pooled hidden states.

    Args:
        options: Which loss.
        width: Entries of a state; needed by `memory`.
        sources: How many sources the prompts have; needed by `worst_sources`.

    Example:
        >>> loss = ContrastiveLoss(LossOptions(name="supcon"))
        >>> loss(states, labels)  # states [batch, hidden], labels [batch]
    """

    def __init__(self, options: LossOptions, width: int = 0, sources: int = 0) -> None:
        super().__init__()
        self.options = options
        reducer = WorstSources(sources, options.worst_sources) if options.worst_sources else None
        self.metric_loss = _metric_loss(options, reducer)
        self.memory = Memory(self.metric_loss, width, options.memory) if options.memory else None

    def forward(self, states: Tensor, labels: Tensor, sources: Tensor | None = None) -> Tensor:
        """The loss of one batch.

        Args:
            states: Pooled hidden states, `[batch, hidden]`.
            labels: Any integers, `[batch]`; equal ones are positives.
            sources: The number of each prompt's source, `[batch]`; needed by `worst_sources`.

        Returns:
            A scalar; 0 without gradient if the batch holds one label only.
        """
        if self.options.centre:
            states = states - states.mean(0, keepdim=True)
        if isinstance(self.metric_loss.reducer, WorstSources):
            self.metric_loss.reducer.of_rows = sources
        loss: Tensor = self.metric_loss(states, labels)
        return loss if self.memory is None else loss + self.memory(states, labels)


def retention(hidden: Tensor, reference: Tensor, attention_mask: Tensor) -> Tensor:
    """How far states have moved from where they were at the start, relative to the latter's size, averaged over tokens.

    Args:
        hidden: States now, `[batch, length, hidden]`.
        reference: States at the start, `[batch, length', hidden]` with `length' <= length`.
        attention_mask: 1 for tokens, padding on the right, `[batch, length]`.
    """
    length = reference.shape[1]
    hidden, mask = hidden[:, :length].float(), attention_mask[:, :length].bool()
    moved = (hidden - reference).square().sum(-1)[mask]
    return (moved / reference.square().sum(-1)[mask].clamp(min=1e-12)).mean()


def _metric_loss(options: LossOptions, reducer: WorstSources | None) -> nn.Module:
    loss: nn.Module
    match options.name:
        case "circle":
            kind = GlobalCircleLoss if options.reduction == "global" else metric_losses.CircleLoss
            loss = kind(m=options.margin, gamma=options.gamma, reducer=reducer)
        case "supcon":
            loss = metric_losses.SupConLoss(temperature=options.temperature, reducer=reducer)
        case "ntxent":
            loss = metric_losses.NTXentLoss(temperature=options.temperature)
        case "triplet":
            loss = metric_losses.TripletMarginLoss(margin=options.margin)
    return loss
