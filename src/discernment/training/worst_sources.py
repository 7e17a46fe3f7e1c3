"""Weighing the sources of a batch by how badly they do, so that none is given up for the others."""

import torch
from pytorch_metric_learning.reducers import BaseReducer
from torch import Tensor


class WorstSources(BaseReducer):
    """The mean loss of each source, weighted by how high it has been (after group DRO, Sagawa et al. 2020, algorithm 1).

    The weight of a source is multiplied by exp(step * its mean loss) whenever it has prompts in a batch (arXiv 1911.08731).
    There all groups come equally often; here a source that comes in every batch would gain by that alone, so the sources
    of a batch share what weight they had together. The loss is the weighted mean over them.

    Args:
        sources: How many there are.
        step: eta, how fast weights follow the losses.

    Attributes:
        log_weights: The logarithm of each source's weight, `[sources]`; the weights sum to 1.
        of_rows: The source of each row of the batch, `[batch]`; set it before the loss is called.
    """

    log_weights: Tensor

    def __init__(self, sources: int, step: float) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("log_weights", torch.full((sources,), 1 / sources).log())
        self.of_rows: Tensor | None = None

    def element_reduction(
        self, losses: Tensor, loss_indices: Tensor, embeddings: Tensor, labels: Tensor
    ) -> Tensor:
        """Reduce one loss a prompt; one of 0 does not count, as in the plain mean of the library."""
        assert self.of_rows is not None
        losses = losses.reshape(-1)
        counted = losses.detach() > 0
        if not counted.any():
            return embeddings.sum() * 0
        of_rows = self.of_rows[loss_indices][counted]
        here, places, counts = of_rows.unique(return_inverse=True, return_counts=True)
        means = losses.new_zeros(len(here)).index_add(0, places, losses[counted]) / counts
        before = self.log_weights[here]
        weights = (before + self.step * means.detach()).log_softmax(0)
        self.log_weights[here] = weights + before.logsumexp(0)
        return torch.dot(weights.exp(), means)
