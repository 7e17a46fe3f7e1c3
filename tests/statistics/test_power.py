"""The power of the McNemar test against enumeration, simulation, and the published normal approximation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial, norm

from discernment.statistics.paired_tests import mcnemar_exact
from discernment.statistics.power import mcnemar_power, prompts_needed, smallest_difference

SHARES = st.integers(0, 500).map(lambda k: k / 1000)


def enumerated(n: int, only_a: float, only_b: float) -> float:
    """Every way in which n prompts can turn out, each with its own test."""
    rest = 1 - only_a - only_b
    return sum(
        multinomial.pmf([a, b, n - a - b], n, [only_a, only_b, rest])
        for a in range(n + 1)
        for b in range(n + 1 - a)
        if mcnemar_exact(a, b) <= 0.05
    )


@pytest.mark.parametrize(
    ("n", "only_a", "only_b"), [(0, 0.2, 0.1), (5, 0.9, 0.1), (20, 0.4, 0.1), (30, 0.2, 0.2), (25, 0.5, 0.0)]
)
def test_equals_enumeration(n: int, only_a: float, only_b: float) -> None:
    assert mcnemar_power(n, only_a, only_b) == pytest.approx(enumerated(n, only_a, only_b), abs=1e-8)


def test_equals_simulation() -> None:
    rng = np.random.default_rng(0)
    found = rng.multinomial(200, [0.15, 0.06, 0.79], size=3000)
    rejected = np.mean([mcnemar_exact(a, b) <= 0.05 for a, b, _ in found])
    assert mcnemar_power(200, 0.15, 0.06) == pytest.approx(rejected, abs=0.03)


@pytest.mark.parametrize(("only_a", "only_b"), [(0.15, 0.05), (0.25, 0.10), (0.06, 0.02)])
def test_is_a_little_above_the_normal_approximation(only_a: float, only_b: float) -> None:
    """Connor (1987); the exact test needs somewhat more, because it is conservative."""
    differing, difference = only_a + only_b, only_a - only_b
    z, power = norm.ppf(0.975), norm.ppf(0.8)
    approximation = (
        z * math.sqrt(differing) + power * math.sqrt(differing - difference**2)
    ) ** 2 / difference**2
    needed = prompts_needed(only_a, only_b)
    assert needed is not None
    assert approximation <= needed <= 1.12 * approximation
    assert mcnemar_power(needed, only_a, only_b) >= 0.8 > mcnemar_power(needed - 1, only_a, only_b)


@pytest.mark.parametrize(("only_a", "only_b"), [(0.8, 0.2), (0.7, 0.3), (0.4, 0.0), (0.5, 0.2), (0.15, 0.05)])
def test_from_the_number_needed_on_the_power_stays_enough(only_a: float, only_b: float) -> None:
    """Looked for one by one, from below and far beyond."""
    enough = [mcnemar_power(n, only_a, only_b) >= 0.8 for n in range(400)]
    last = max(n for n, yes in enumerate(enough) if not yes)
    assert prompts_needed(only_a, only_b) == last + 1


@given(st.integers(0, 400), SHARES, SHARES)
def test_power_is_a_probability_and_knows_no_sides(n: int, only_a: float, only_b: float) -> None:
    power = mcnemar_power(n, only_a, only_b)
    assert 0 <= power <= 1 + 1e-9
    assert power == pytest.approx(mcnemar_power(n, only_b, only_a), abs=1e-9)
    if only_a == only_b:
        assert power <= 0.05


def test_the_smallest_difference_is_shown_with_the_power_asked_for() -> None:
    found = smallest_difference(450, 0.2)
    assert found is not None
    assert mcnemar_power(450, (0.2 + found) / 2, (0.2 - found) / 2) == pytest.approx(0.8, abs=1e-6)
    assert found == pytest.approx(2.8 * math.sqrt(0.2 / 450), rel=0.08)  # (1.96 + 0.84) standard errors
    fewer, more = smallest_difference(450, 0.2, power=0.9), smallest_difference(2000, 0.2)
    assert fewer is not None and more is not None
    assert more < found < fewer


def test_what_cannot_be_shown() -> None:
    assert smallest_difference(20, 0.1) is None  # two prompts differ: no test can tell
    assert prompts_needed(0.1, 0.1) is None
    assert prompts_needed(0.0, 0.0) is None
    assert mcnemar_power(100, 0, 0) == 0
    for wrong in ((10, -0.1, 0.2), (10, 0.6, 0.6), (-1, 0.1, 0.1)):
        with pytest.raises(ValueError, match="cannot be"):
            mcnemar_power(*wrong)
