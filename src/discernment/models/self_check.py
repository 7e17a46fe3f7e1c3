"""Whether a model gives for several prompts at once what it gives for each alone: tried out, not known by its name.

Padding, a beginning that is run once and a tree of continuations mean nothing to a model whose attention is masked as
usual. They change what a recurrent state holds, and what a bias of distances sees. So each way of running prompts
together is tried at its first use on three short rows, and the first that gives the numbers of each row alone is taken.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.models.precision import free_memory

logger = logging.getLogger(__name__)

BEGINNING, SHORT, LONG, REPLY, BRANCHES = 8, 5, 21, 3, 24
LEAST = 6
"""Rows with less room than this behind their beginning are not tried."""

GROSS = 0.5
"""How far numbers may be off where no more than bfloat16 can be had: in 30 layers its rounding alone gave 0.4."""

ONE_LENGTH = "batches of one length"
Rows = Sequence[Sequence[int]]
_found: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], int]] = WeakKeyDictionary()


class Probes(NamedTuple):
    """What a model is tried on.

    Attributes:
        rows: Token ids of a short row and two long ones, with one beginning.
        reply: Tokens that go on behind each.
        branches: Other tokens that do, all different.
    """

    rows: list[list[int]]
    reply: list[int]
    branches: list[int]


Run = Callable[[Probes], Sequence[Tensor]]
"""What comes of the rows of the probes, a tensor a row, `[..., features]`."""


class Way(NamedTuple):
    """A way of running several rows.

    Attributes:
        words: What it does, to be told where a faster way is not taken.
        run: Runs them.
    """

    words: str
    run: Run


def make_probes(config: Any) -> Probes | None:
    """Rows of ordinary tokens that fit the model's positions; None where hardly a token does.

    Args:
        config: The model's configuration.
    """
    if not hasattr(config, "get_text_config"):
        return None
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    room = limit if isinstance(limit, int) and limit > 0 else 1000
    long = min(LONG, room - BEGINNING - REPLY - 1)
    if long < LEAST:
        return None
    # Special tokens mostly stand at the ends of a vocabulary.
    low, span = config.vocab_size // 4, config.vocab_size // 2
    tokens = [low + (37 * n + n * n) % span for n in range(BEGINNING + SHORT + 2 * LONG + REPLY)]
    begin, rest = tokens[:BEGINNING], tokens[BEGINNING:]
    ends = (
        rest[: min(SHORT, long // 3)],
        rest[SHORT : SHORT + long],
        rest[SHORT + LONG : SHORT + LONG + long],
    )
    branches = list(range(low, low + span))[:: max(1, span // BRANCHES)][:BRANCHES]
    return Probes([[*begin, *end] for end in ends], rest[-REPLY:], branches)


def exact_way(
    model: nn.Module,
    config: Any,
    what: str,
    alone: Run,
    ways: Sequence[Way],
    name: str | None = None,
    level: int = logging.WARNING,
) -> int:
    """The first of several ways of running rows that gives what each row gives alone.

    It is found once for a model; models that pass are left as they were, their numbers too.

    Args:
        model: The model, or what is left of it.
        config: Its configuration.
        what: What is computed, in the plural.
        alone: What each of the probes' rows gives by itself.
        ways: The ways, the fastest first; the last one is the safest.
        name: What to call the model; its class by default.
        level: How loudly to tell that it is not the fastest.

    Returns:
        Its place among `ways`.

    Raises:
        ModelError: If even the last one gives something else, or a row cannot be run by itself.
    """
    weights = next(model.parameters())
    known = _found.setdefault(model, {})
    key = (what, weights.dtype, getattr(config, "_attn_implementation", None))
    if key not in known:
        probes = make_probes(config)
        known[key] = 0
        if probes is not None:
            quantised = getattr(config, "quantization_config", None) is not None
            with _undisturbed(model, weights.device), _in_float32(model, config) as rough:
                tolerance = _tolerance(next(model.parameters()).dtype, quantised, rough)
                known[key] = _first(name or type(model).__name__, what, alone, ways, probes, tolerance, level)
    return known[key]


def _first(
    name: str,
    what: str,
    alone: Run,
    ways: Sequence[Way],
    probes: Probes,
    tolerance: float,
    level: int,
) -> int:
    try:
        expected = alone(probes)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(
            f"{name} cannot be run on a row of tokens by itself ({reason.rstrip('.')}); is it a causal language model?"
        ) from error
    if not all(bool(row.isfinite().all()) for row in expected):
        return 0  # nothing to compare with; whoever uses the numbers says so
    for place, way in enumerate(ways):
        if _agrees(way.run, probes, expected, tolerance):
            if place:
                told = "%s gives other %s in %s; it is run in %s."
                logger.log(level, told, name, what, ways[0].words, way.words)
            return place
    raise ModelError(
        f"{name} gives other {what} in {ways[-1].words} than for a row by itself, so that they cannot be trusted; use "
        "another model, another `attn_implementation`, or another version of transformers."
    )


def _agrees(run: Run, probes: Probes, expected: Sequence[Tensor], tolerance: float) -> bool:
    try:
        found = run(probes)
    except Exception as error:  # models raise what they like at what they cannot do
        logger.debug("A way of running several rows failed.", exc_info=error)
        return False
    pairs = list(zip(found, expected, strict=True))
    return all(a.shape == b.shape for a, b in pairs) and all(_distance(a, b) <= tolerance for a, b in pairs)


def _distance(found: Tensor, expected: Tensor) -> float:
    """How far vectors are off, relative to how much they vary; the largest counts. NaN is infinitely far."""
    found, expected = found.double(), expected.double()
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-30)
    off = ((found - expected).norm(dim=-1) / spread).nan_to_num(torch.inf)
    return float(off.max())


def _tolerance(dtype: torch.dtype, quantised: bool, rough: bool) -> float:
    """Half of the digits agree. Norms and softmax compute in float32 in float64 models too."""
    if rough:
        return GROSS
    known = torch.bfloat16 if quantised or not dtype.is_floating_point else dtype
    return math.sqrt(max(torch.finfo(known).eps, torch.finfo(torch.float32).eps))


@contextmanager
def _in_float32(model: nn.Module, config: Any) -> Iterator[bool]:
    """Compute in float32 where weights are less: through many layers, rounding to fewer digits looks like a mistake.

    Yields:
        Whether the model computes in less all the same, for want of memory or since its attention knows nothing else.
    """
    if "flash" in (getattr(config, "_attn_implementation", None) or ""):
        yield True
        return
    weights = [*model.parameters(), *model.buffers()]
    narrow = [(w, w.data) for w in weights if w.dtype in (torch.bfloat16, torch.float16)]
    if 4 * sum(w.numel() for w, _ in narrow) > free_memory(next(model.parameters()).device):
        yield True
        return
    layers: list[Any] = [m for m in model.modules() if getattr(m, "compute_dtype", None) is not None]
    computed = [(layer, layer.compute_dtype) for layer in layers]  # what 4-bit weights are multiplied in
    try:
        for w, data in narrow:
            w.data = data.float()
        for layer in layers:
            layer.compute_dtype = torch.float32
        yield False
    finally:
        for w, data in narrow:
            w.data = data
        for layer, dtype in computed:
            layer.compute_dtype = dtype


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Without dropout, gradients and mixed precision; the model and the random state are as before afterwards."""
    training = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        for module, was in training:
            module.training = was
