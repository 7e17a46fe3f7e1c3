"""The probe estimator, on kernels that are known."""

import math

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


def norms_of(directions, probes, repeats=1000):
    """Estimated norms of the kernels of prompts whose gradients span a few directions, as shares of the true ones."""
    generator = torch.Generator().manual_seed(probes)
    factors = torch.randn(3, 30, directions, generator=generator, dtype=torch.float64)
    kernels = torch.einsum("ixd,jyd->ijxy", factors, factors)
    found = [probe_inner(x, x)[0] for x in (probed(kernels, probes, generator) for _ in range(repeats))]
    return np.sqrt(np.stack(found)) / kernels.square().sum((2, 3)).sqrt().numpy()


@pytest.mark.parametrize("probes", [4, 16])
def test_norms_are_too_low_and_similarities_too_high(probes):
    norms = norms_of(1, probes)
    # u^T K v = |K| a b with standard normal a and b: the estimate is the mean of a^2 times that of b^2.
    mean_root = math.sqrt(2 / probes) * math.gamma((probes + 1) / 2) / math.gamma(probes / 2)
    own = norms.diagonal(axis1=1, axis2=2)
    assert own.mean() == pytest.approx(mean_root**2, rel=0.02)
    squares = np.random.default_rng(0).chisquare(probes, (4, 200_000))
    u, v, other_u, other_v = squares
    expected = np.sqrt((u * other_v + other_u * v) / (2 * u * v)).mean()
    similarity = (norms / own[..., None])[:, ~np.eye(3, dtype=bool)]
    assert similarity.mean() == pytest.approx(expected, rel=0.02)
    assert expected - 1 == pytest.approx({4: 0.26, 16: 0.05}[probes], abs=0.01)


@pytest.mark.parametrize(("probes", "share"), [(4, 0.09), (16, 0.014)])
def test_similarities_are_less_too_high_where_gradients_span_more(probes, share):
    norms = norms_of(8, probes)
    own = norms.diagonal(axis1=1, axis2=2)
    similarity = (norms / own[..., None])[:, ~np.eye(3, dtype=bool)]
    assert similarity.mean() - 1 == pytest.approx(share, abs=0.012)
