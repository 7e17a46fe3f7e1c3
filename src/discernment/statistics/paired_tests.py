"""Tests of two methods on the same prompts, and of many such comparisons together."""

from collections.abc import Sequence


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact McNemar test.

    Args:
        only_a: Number of prompts that only the first of two methods handled rightly.
        only_b: Number of prompts that only the second handled rightly.

    Returns:
        The p-value; 1 where the two never differ.
    """
    if only_a + only_b == 0:
        return 1.0
    from statsmodels.stats.contingency_tables import mcnemar

    return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of the p-values of one family of tests.

    Args:
        p_values: One p-value a test.

    Returns:
        The corrected p-values, in the same order: rejecting those below 0.05 makes even one false rejection in
        the whole family less likely than 0.05, however the tests depend on each other.
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
