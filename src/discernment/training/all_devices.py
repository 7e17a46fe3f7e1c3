"""What a batch that is spread over several devices has as a whole."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from discernment.ranks import sharing


def of_all_devices(rows: Tensor) -> Tensor:
    """The rows of all devices, in the order of the batch; as many from each.

    With gradient: that of every device's loss comes back to each row. Where all devices take the same loss and the
    trainer averages the gradients of the weights, as it does, this comes to the gradient of that loss.

    Args:
        rows: Those of this device, `[rows, ...]`.

    Returns:
        `[devices * rows, ...]`.
    """
    if sharing() == 1:
        return rows
    if rows.requires_grad:
        return torch.cat(list(all_gather(rows)))
    found = [torch.empty_like(rows) for _ in range(sharing())]
    dist.all_gather(found, rows.contiguous())
    return torch.cat(found)


def part_of_mean(mean: Tensor, weight: Tensor) -> Tensor:
    """What this device has to add to its loss for a mean over the rows of all.

    Args:
        mean: The mean over what this device has; anything where it has nothing.
        weight: Over how many it is.

    Returns:
        A scalar whose mean over the devices is the mean over all.
    """
    if sharing() == 1:
        return mean
    total = weight.detach().clone()
    dist.all_reduce(total)
    return mean * weight * sharing() / total if weight else mean.new_zeros(())


def mean_over_devices(number: Tensor) -> float:
    """The mean of a number that each device has, without gradient."""
    found = number.detach().clone()
    if sharing() > 1:
        dist.all_reduce(found)
    return float(found) / sharing()
