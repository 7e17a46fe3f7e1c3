"""The probe estimator, on kernels that are known."""

import numpy as np
import pytest
import torch

from discernment.kernel.vocabulary import probe_inner


def probed(a, probes, generator):
    """u^T A_ij v with fresh probes for every prompt, `[n, 2 probes, n, 2 probes]`."""
    n, size = a.shape[0], a.shape[-1]
    rows = torch.randn(n, 2 * probes, size, generator=generator, dtype=torch.float64)
    return torch.einsum("irx,ijxy,jqy->irjq", rows, a, rows)


@pytest.fixture
def kernels():
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 30, 8, generator=generator, dtype=torch.float64)
    return torch.einsum("ixd,jyd->ijxy", factors, factors)


def study(kernels, probes, repeats):
    generator = torch.Generator().manual_seed(probes)
    found = [probe_inner(x, x) for x in (probed(kernels, probes, generator) for _ in range(repeats))]
    return np.stack([m for m, _ in found]), np.stack([e for _, e in found])


def test_the_mean_is_the_squared_norm(kernels):
    truth = kernels.square().sum((2, 3)).numpy()
    means, errors = study(kernels, 16, 300)
    standard_error = means.std(0, ddof=1) / np.sqrt(len(means))
    assert (np.abs(means.mean(0) - truth) < 1.96 * standard_error + 1e-12).all()
    # Each study's own interval is what it says, too.
    assert 0.85 < (np.abs(means - truth) < 1.96 * errors).mean() < 0.99


def test_the_stated_error_is_the_real_one(kernels):
    means, errors = study(kernels, 16, 300)
    ratio = np.sqrt((errors**2).mean(0)) / means.std(0, ddof=1)
    assert ((ratio > 0.75) & (ratio < 1.35)).all()


def test_the_error_falls_with_the_root_of_the_probes(kernels):
    few, many = study(kernels, 16, 300)[0].std(0), study(kernels, 64, 300)[0].std(0)
    assert np.median(few / many) == pytest.approx(2.0, rel=0.2)


def test_inner_products_of_two_kernels(kernels):
    other = kernels.roll((1, 1), dims=(2, 3)) + kernels / 2  # a Gram matrix, too
    truth = (kernels * other).sum((2, 3)).numpy()
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(300):
        rows = torch.randn(3, 32, 30, generator=generator, dtype=torch.float64)
        one, two = (torch.einsum("irx,ijxy,jqy->irjq", rows, a, rows) for a in (kernels, other))
        found.append(probe_inner(one, two)[0])
    means = np.stack(found)
    standard_error = means.std(0, ddof=1) / np.sqrt(len(means))
    assert (np.abs(means.mean(0) - truth) < 2.5 * standard_error).all()
