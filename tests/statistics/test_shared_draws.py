"""Statistics of several methods from one bootstrap, against plain loops over the very same draws."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discernment.statistics.auroc import discernment_auroc, weighted_auroc
from discernment.statistics.equal_safety import compare_scores
from discernment.statistics.intervals import BATCH_ENTRIES, paired_bootstrap
from discernment.statistics.operating_curve import OperatingCurve
from effort import peak_bytes

PERCENTILES = [2.5, 97.5]
SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), min_size=1, max_size=15)


def pairs_in_order(toxic: list[float], harmless: list[float]) -> float:
    """The AUROC, a toxic prompt at a time."""
    ranked = sorted(harmless)
    return sum(bisect_left(ranked, t) + bisect_right(ranked, t) for t in toxic) / (
        2 * len(toxic) * len(ranked)
    )


def answered_at(toxic: list[float], harmless: list[float], share: float) -> float:
    """Compliance where a share of the toxic prompts is refused, going down threshold by threshold."""
    before = 0.0
    for threshold in sorted(set(toxic), reverse=True):
        refused = sum(t >= threshold for t in toxic) / len(toxic)
        if refused >= share - 1e-9:
            part = min(1.0, (share - before) / (refused - before))
            above = sum(h > threshold for h in harmless) / len(harmless)
            reaching = sum(h >= threshold for h in harmless) / len(harmless)
            return 1 - (above + part * (reaching - above))
        before = refused
    raise AssertionError


@given(SCORES, SCORES, st.integers(0, 1000))
def test_weighted_auroc_is_that_of_repeated_prompts(
    toxic: list[float], harmless: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    t, h = rng.integers(0, 4, len(toxic)), rng.integers(0, 4, len(harmless))
    t[0], h[-1] = 1, 2
    (found,) = weighted_auroc(np.array(toxic), np.array(harmless))(
        t[None].astype(float), h[None].astype(float)
    )
    assert found == pytest.approx(discernment_auroc(np.repeat(toxic, t), np.repeat(harmless, h)), abs=1e-12)


@given(SCORES, SCORES, st.integers(0, 1000), st.floats(0.01, 1.0))
def test_weighted_threshold_is_the_quantile_of_repeated_prompts(
    toxic: list[float], harmless: list[float], seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (3, len(toxic))).astype(float)
    weights[:, 0] = 1
    thresholds, _ = OperatingCurve(np.array(toxic), np.array(harmless)).at(
        share, weights, np.ones((3, len(harmless)))
    )
    for row, threshold in zip(weights.astype(int), thresholds, strict=True):
        repeated = np.sort(np.repeat(toxic, row))[::-1]
        assert threshold == repeated[int(np.ceil((share - 1e-9) * len(repeated))) - 1]


def test_all_methods_in_one_bootstrap_agree_with_a_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(4)
    n, resamples, share = 40, 200, 0.7
    scores = {
        m: (rng.normal(gap, 1, n).round(1), rng.normal(0, 1, n).round(1)) for m, gap in (("a", 1), ("b", 0.4))
    }
    found = compare_scores(scores, "b", share, seed=9, resamples=resamples)

    draws = np.random.default_rng(9)
    toxic_draws, harmless_draws = (draws.integers(0, n, (resamples, n)) for _ in range(2))
    aurocs: dict[str, list[float]] = {"a": [], "b": []}
    answered: dict[str, list[float]] = {"a": [], "b": []}
    for t, h in zip(toxic_draws, harmless_draws, strict=True):
        for method, (toxic, harmless) in scores.items():
            drawn = toxic[t].tolist(), harmless[h].tolist()
            aurocs[method].append(pairs_in_order(*drawn))
            answered[method].append(answered_at(*drawn, share))
    for method, standing in found.items():
        assert standing.auroc == pytest.approx(np.percentile(aurocs[method], PERCENTILES), abs=1e-12)
        row = standing.equal_safety
        assert row is not None
        for low, high, values in (
            (row.low, row.high, np.array(answered[method])),
            (row.difference_low, row.difference_high, np.subtract(answered[method], answered["b"])),
            (row.auroc_difference_low, row.auroc_difference_high, np.subtract(aurocs[method], aurocs["b"])),
        ):
            assert (low, high) == pytest.approx(np.percentile(values, PERCENTILES), abs=1e-12)
    assert found["a"].equal_safety.difference_low < found["a"].equal_safety.difference_high


def test_blocks_of_draws_are_those_of_one_table_and_bound_the_memory() -> None:
    n, resamples = 3000, 2000
    values = np.random.default_rng(0).random(n)
    drawn = np.random.default_rng(5).integers(0, n, (resamples, n))
    expected = np.percentile([values[row].mean() for row in drawn], PERCENTILES)
    assert n * resamples > 5 * BATCH_ENTRIES
    assert paired_bootstrap(values, np.zeros(n), seed=5, resamples=resamples) == pytest.approx(
        expected, abs=1e-12
    )
    peak = peak_bytes(lambda: paired_bootstrap(values, np.zeros(n), resamples=resamples))
    assert peak < n * resamples * 8
