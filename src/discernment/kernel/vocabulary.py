"""The norm of the kernel over the whole vocabulary: estimated with Gaussian probes, or exactly for few prompts."""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor

from discernment.kernel.collect import Block, Lookup
from discernment.kernel.kernel import Floats


def probe_inner(one: Tensor, other: Tensor) -> tuple[Floats, Floats]:
    """Unbiased estimates of <A, B>_F for all pairs of prompts, from probed kernels u^T A v and u^T B v.

    For independent standard normal u and v, E[(u^T A v)(u^T B v)] = <A, B>_F. The first half of a prompt's rows is
    u, the second v: the two sides of a pair have probes of their own, also for a prompt with itself. A pair is looked
    at from both sides. The root of an estimate is too low in the mean, and one over the root too high, by shares that
    fall as one over the number of probes: a similarity, which has both, comes out too high off the diagonal.

    Args:
        one: u^T A v, `[prompts, rows, prompts, rows]`.
        other: The same of B.

    Returns:
        The estimates and their standard errors, `[prompts, prompts]` each.
    """
    half = one.shape[1] // 2
    found = (one * other)[:, :half, :, half:].permute(0, 2, 1, 3).double()
    mean = found.mean((2, 3))
    # Entries that share a probe go together: two-way random effects.
    of_rows, of_columns = found.mean(3).var(2), found.mean(2).var(2)
    residual = found - found.mean(3, keepdim=True) - found.mean(2, keepdim=True) + mean[..., None, None]
    left_over = residual.square().sum((2, 3)) / (half - 1) ** 2
    variance = (of_rows / half + of_columns / half - left_over / half**2).clamp(min=0)
    both = (mean + mean.T) / 2
    error = ((variance + variance.T) / 4).sqrt()
    diagonal = variance.diagonal().sqrt()
    error.diagonal().copy_(diagonal)
    return both.cpu().numpy(), error.cpu().numpy()


def exact_norms(
    hidden_kernel: Tensor,
    weight: Tensor,
    blocks: Sequence[Block],
    lookups: Sequence[Lookup],
    *,
    head: bool,
    bias: bool,
) -> Floats:
    """||K||_F over the whole vocabulary, from the kernel of the head's input.

    With W the head's weight, S the slopes of what follows the head (1 without a soft cap) and H the kernel of the
    head's input, K = S' (W H W^T + (h' . h) I + what W has to do with itself as an embedding) S. All terms but the
    diagonal have low rank, so that no matrix of the vocabulary's size squared is formed.

    Args:
        hidden_kernel: H, `[prompts, hidden, prompts, hidden]`.
        weight: W, `[vocabulary, hidden]`.
        blocks: The prompts' blocks, with the head's inputs and S.
        lookups: Calls of the tied embedding with the gradients of its rows; none if the weights are not tied.
        head: Count the head's own parameters in.
        bias: Whether the head has a bias.

    Returns:
        `[prompts, prompts]`.
    """
    n = len(hidden_kernel)
    weight, hidden_kernel = weight.double(), hidden_kernel.double()
    inputs: dict[int, Tensor] = {}
    slopes: dict[int, Tensor] = {}
    for block in blocks:
        assert block.head_input is not None and block.slopes is not None
        for row, prompt in enumerate(block.prompts):
            inputs[prompt] = block.head_input[row, -1].double()
            slopes[prompt] = block.slopes[row, -1].double()
    embedded: dict[int, tuple[Tensor, Tensor]] = {}
    for lookup in lookups:
        for row, prompt in enumerate(lookup.block.prompts):
            own = lookup.trained[row]
            embedded[prompt] = lookup.call.input[row, own], lookup.gradients[row, :, own].double()
    norms = np.zeros((n, n))
    for i, j in combinations_with_replacement(range(n), 2):
        left, right = [weight @ hidden_kernel[i, :, j]], [weight]
        diagonal = slopes[i] * slopes[j] * (inputs[i] @ inputs[j] + float(bias) if head else 0.0)
        if head and embedded:
            # The head's row of a token, times that token's embedding in the other prompt.
            for here, there, one, other in ((i, j, left, right), (j, i, right, left)):
                ids, gradients = embedded[there]
                one.append(torch.nn.functional.one_hot(ids, len(weight)).T.double())
                other.append(weight @ (gradients @ inputs[here]))
        p = torch.cat(left, 1) * slopes[i][:, None]
        q = torch.cat(right, 1) * slopes[j][:, None]
        squared = ((p.T @ p) * (q.T @ q)).sum()
        squared = squared + 2 * (diagonal * (p * q).sum(1)).sum() + diagonal.square().sum()
        norms[i, j] = norms[j, i] = float(squared.clamp(min=0).sqrt())
    return norms
