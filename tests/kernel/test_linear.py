"""The three orders of a linear layer's inner products, and threads, against gradients that are formed."""

import pytest
import torch

from discernment.errors import DataError
from discernment.kernel import linear
from discernment.kernel.gram import Storage
from discernment.kernel.linear import LinearFactor, cheapest_way
from discernment.kernel.parallel import in_parallel

WAYS = ["ghost", "moved", "materialised"]
SHARED, ROWS, INPUTS, OUTPUTS = 3, 4, 9, 21


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def blocks(sizes, generator):
    """Inputs, gradients and lengths of blocks of prompts that begin alike, longest first, padded on the left."""
    lengths = sorted(torch.randint(SHARED, 12, (sum(sizes),), generator=generator).tolist(), reverse=True)
    beginning = torch.randn(SHARED, INPUTS, generator=generator, dtype=torch.float64)
    for size in sizes:
        here, lengths = lengths[:size], lengths[size:]
        inputs = torch.zeros(size, here[0], INPUTS, dtype=torch.float64)
        gradients = torch.zeros(size, ROWS, here[0], OUTPUTS, dtype=torch.float64)
        for place, length in enumerate(here):
            own = torch.randn(length - SHARED, INPUTS, generator=generator, dtype=torch.float64)
            inputs[place, here[0] - length :] = torch.cat([beginning, own])
            gradients[place, :, here[0] - length :].normal_(generator=generator)
        yield inputs, gradients, here


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shared", [0, SHARED])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("cache", [1, 1 << 18])
def test_every_order_gives_the_products_of_the_gradients(way, shared, count, cache, threads, monkeypatch):
    threads(count)
    monkeypatch.setattr(linear, "CACHE_ENTRIES", cache)
    monkeypatch.setattr(linear, "CHUNK_OUTPUTS", 8)  # three chunks, the last one filled up if need be
    factor = LinearFactor(Storage(1e9), shared=shared, bias=True, way=way)
    formed = []
    for inputs, gradients, lengths in blocks((9, 1, 2, 13), torch.Generator().manual_seed(0)):
        factor.add(inputs, gradients, lengths)
        weights = torch.einsum("nrto,nti->nroi", gradients, inputs).flatten(2)
        formed.append(torch.cat([weights, gradients.sum(2)], dim=2))
    expected = torch.einsum("irx,jqx->irjq", torch.cat(formed), torch.cat(formed))
    found = torch.zeros_like(expected)
    factor.add_gram(found)
    assert len(factor.gradients) > 1 or way != "moved"
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("rows", "own", "inputs", "way"),
    [
        (1, 20, 576, "ghost"),  # one row: nothing is shared between rows
        (10, 23, 576, "moved"),
        (10, 200, 576, "materialised"),
        (10, 200, 16384, "moved"),
        (10, 0, 576, "ghost"),
    ],
)
def test_the_order_is_that_with_the_fewest_multiplications(rows, own, inputs, way):
    assert cheapest_way(rows, own, inputs) == way


@pytest.mark.parametrize("count", [1, 2, 5])
def test_work_side_by_side_keeps_its_order_and_the_threads(threads, count):
    threads(count)
    weight = torch.ones(3, requires_grad=True)
    found = in_parallel(lambda n: (n**2, (n * weight).requires_grad), range(7), torch.device("cpu"))
    assert found == [(n**2, False) for n in range(7)]
    assert torch.get_num_threads() == count


def test_what_goes_wrong_side_by_side_is_told(threads):
    threads(2)

    def work(n):
        raise DataError(f"no {n}")

    with pytest.raises(DataError, match="no 0"):
        in_parallel(work, range(3), torch.device("cpu"))
    assert torch.get_num_threads() == 2
