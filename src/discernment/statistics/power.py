"""How many prompts a difference needs, and how small a difference a number of prompts can show.

Two methods answer the same prompts, and only those that they handle differently tell them apart: the exact McNemar
test asks whether one method wins more of these than the toss of a coin would give. The power here is that of this
very test, summed over how many such prompts a benchmark may turn out to have; no normal approximation.
Prompts count as independent: divide their number by the design effect where they come in frames or pairs.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

ALPHA = 0.05
POWER = 0.8
MOST_PROMPTS = 1_000_000
NEGLIGIBLE = 1e-10
TEETH = 36
"""More prompts do not always give more power, since the test's counts are whole; this many hold several of its teeth."""


def mcnemar_power(n: int, only_a: float, only_b: float, *, level: float = ALPHA) -> float:
    """Probability that the exact two-sided McNemar test finds a difference.

    Args:
        n: Number of prompts.
        only_a: Share of prompts that only the first of two methods handles rightly.
        only_b: Share that only the second handles rightly; the difference of the rates is `only_a - only_b`.
        level: The test's level.

    Raises:
        ValueError: If the shares are negative or more than 1 together, or `n` is negative.
    """
    differing = only_a + only_b
    if min(only_a, only_b) < 0 or differing > 1 + 1e-12 or n < 0:
        raise ValueError(f"Shares of {only_a} and {only_b} of {n} prompts cannot be.")
    if differing == 0:
        return 0.0
    discordant = binom(n, min(differing, 1.0))
    counts = np.arange(discordant.ppf(NEGLIGIBLE), discordant.isf(NEGLIGIBLE) + 1)
    # The most wins of the loser with which the test still rejects; -1 where it never does.
    most = binom.ppf(level / 2, counts, 0.5)
    most = np.where(2 * binom.cdf(most, counts, 0.5) <= level, most, most - 1)
    wins = binom(counts, only_a / differing)
    rejected = wins.cdf(most) + wins.sf(counts - most - 1)
    return float(np.sum(discordant.pmf(counts) * rejected))


def prompts_needed(only_a: float, only_b: float, *, power: float = POWER, level: float = ALPHA) -> int | None:
    """How many prompts it takes to find a difference with a given probability.

    Args:
        only_a: Share of prompts that only the first of two methods handles rightly.
        only_b: Share that only the second handles rightly.
        power: The probability.
        level: The test's level.

    Returns:
        The smallest number from which on the power is enough, with it and with each of the next `TEETH`; a single smaller
        number may be enough too. None if a million prompts are not enough.

    Raises:
        ValueError: If the shares are negative or more than 1 together.
    """

    def enough(n: int) -> bool:
        return mcnemar_power(n, only_a, only_b, level=level) >= power

    high = 1
    while not enough(high):
        if high >= MOST_PROMPTS:
            return None
        high = min(2 * high, MOST_PROMPTS)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    while failing := [n for n in range(high + 1, high + 1 + TEETH) if not enough(n)]:
        high = failing[-1] + 1
    return high


def smallest_difference(
    n: int, differing: float, *, power: float = POWER, level: float = ALPHA
) -> float | None:
    """The smallest difference of two rates that a number of prompts shows with a given probability.

    Args:
        n: Number of prompts.
        differing: Share of prompts that exactly one of the two methods handles rightly; what a comparison gives as
            `(only_method + only_against) / n`.
        power: The probability.
        level: The test's level.

    Returns:
        The difference, at most `differing`; None if even that would be missed more often.

    Raises:
        ValueError: If `differing` is not between 0 and 1, or `n` is negative.
    """

    def excess(difference: float) -> float:
        return (
            mcnemar_power(n, (differing + difference) / 2, (differing - difference) / 2, level=level) - power
        )

    if excess(differing) < 0:
        return None
    return float(brentq(excess, 0.0, differing))
