"""Weighing the sources of a batch by how badly they do, so that none is given up for the others."""

import torch
from pytorch_metric_learning.reducers import BaseReducer
from torch import Tensor


class WorstSources(BaseReducer):
    """The mean loss of each source, weighted by how high it has been (group DRO, Sagawa et al. 2020, algorithm 1).

    A source's weight is multiplied by exp(step * its mean loss) whenever it has prompts in a batch (arXiv 1911.08731). The
    loss of a batch is the weighted mean over the sources that it holds.

    Args:
        sources: How many there are.
        step: eta, how fast weights follow the losses.

    Attributes:
        weights: One a source, `[sources]`; they sum to 1.
        of_rows: The source of each row of the batch, `[batch]`; set it before the loss is called.
    """

    weights: Tensor

    def __init__(self, sources: int, step: float) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("weights", torch.full((sources,), 1 / sources))
        self.of_rows: Tensor | None = None

    def element_reduction(
        self, losses: Tensor, loss_indices: Tensor, embeddings: Tensor, labels: Tensor
    ) -> Tensor:
        """Reduce one loss a prompt; 0 is one without a positive or a negative, and does not count."""
        assert self.of_rows is not None
        counted = losses.detach() > 0
        if not counted.any():
            return embeddings.sum() * 0
        sources = self.of_rows[loss_indices][counted]
        count = torch.bincount(sources, minlength=len(self.weights))
        sums = losses.new_zeros(len(self.weights)).index_add(0, sources, losses[counted])
        means = sums / count.clamp(min=1)
        weights = self.weights * (self.step * means.detach()).exp()
        self.weights.copy_(weights / weights.sum())
        present = self.weights * (count > 0)
        return (present * means).sum() / present.sum()
