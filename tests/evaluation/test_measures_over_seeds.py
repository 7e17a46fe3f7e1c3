"""Kernel similarity, ability and attacks over seeds, against scipy's t test and values worked by hand."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from discernment.evaluation.measures_over_seeds import summarize_measures
from discernment.evaluation.results import Ability, KernelSimilarity, Results
from discernment.evaluation.robustness import AttackDrop
from discernment.prompts import Label


def results(kernels=(), abilities=(), drops=()):
    """Results of one seed.

    Args:
        kernels: Policy, label and mean of each.
        abilities: Policy, KL and perplexity ratio of each.
        drops: Method, attack and defense success lost to it.
    """
    none = dict.fromkeys(
        ("kl_low", "kl_high", "perplexity_low", "perplexity_high", "ratio_low", "ratio_high")
    )
    return Results(
        base_model="tiny",
        reference="stl",
        methods=["base", "stl", "dcr"],
        benchmarks=[],
        scores=[],
        rankings=[],
        comparisons=[],
        equal_safety=[],
        kernels=[
            KernelSimilarity(policy=policy, label=label, mean=mean, low=None, high=None, pairs=12)
            for policy, label, mean in kernels
        ],
        abilities=[
            Ability(
                policy=policy, base="tiny", kl=kl, ratio=ratio, perplexity=2 * ratio, perplexity_base=2, prompts=9,
                tokens=90, **none,
            )
            for policy, kl, ratio in abilities
        ],
        attack_drops=[
            AttackDrop(
                method=method, attack=attack, benchmark="all", clean=0.9, attacked=0.9 - drop, drop=drop, low=0, high=1,
                p_value=1, n=20, unscored=0,
            )
            for method, attack, drop in drops
        ],
        finding="",
    )  # fmt: skip


def test_differences_are_paired_by_seed_and_their_intervals_are_those_of_a_t_test():
    stl, dcr = [0.56, 0.51, 0.60, 0.48], [0.30, 0.33, 0.29, 0.35]
    kl_stl, kl_dcr = [4.1, 0.2, 3.0, 0.5], [0.4, 2.3, 0.1, 1.9]  # differences beyond 1
    runs = {
        seed: results(
            [
                ("base", Label.SEEMINGLY_TOXIC, 0.39),
                ("base", Label.BENIGN, 0.31),
                ("stl", Label.SEEMINGLY_TOXIC, stl[n]),
                ("stl", Label.BENIGN, None if n == 2 else 0.2),
                ("dcr", Label.SEEMINGLY_TOXIC, dcr[n]),
                ("dcr", Label.BENIGN, 0.1),
            ],
            [("stl", kl_stl[n], 0.7), ("dcr", kl_dcr[n], 0.8)],
        )
        for n, seed in enumerate([3, 0, 5, 9])
    }
    found = {(row.measure, row.label, row.method): row for row in summarize_measures(runs, "stl")}
    assert [key[0] for key in found] == [
        *(["kernel_similarity"] * 5),
        "kl",
        "kl",
        *(["perplexity_ratio"] * 2),
    ]

    for measure, label, ours, theirs in (
        ("kernel_similarity", Label.SEEMINGLY_TOXIC, dcr, stl),
        ("kl", None, kl_dcr, kl_stl),
    ):
        row, reference = found[measure, label, "dcr"], found[measure, label, "stl"]
        assert (row.values, reference.values) == (ours, theirs)
        assert row.mean == pytest.approx(np.mean(ours))
        expected = ttest_rel(ours, theirs).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
        assert row.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
        assert reference.difference is reference.low is reference.high is None

    assert found["kernel_similarity", Label.SEEMINGLY_TOXIC, "base"].difference == pytest.approx(
        0.39 - np.mean(stl)
    )
    # Without a number for the reference with every seed, there is a mean and no difference.
    assert ("kernel_similarity", Label.BENIGN, "stl") not in found
    assert found["kernel_similarity", Label.BENIGN, "dcr"].mean == pytest.approx(0.1)
    assert found["kernel_similarity", Label.BENIGN, "dcr"].difference is None
    ratio = found["perplexity_ratio", None, "dcr"]
    assert (ratio.difference, ratio.low, ratio.high) == (
        pytest.approx(0.1),
        None,
        None,
    )  # the same with each seed


def test_what_attacks_take_is_a_mean_over_them_with_each_seed():
    lost = {"stl": [(0.1, 0.3), (0.2, 0.2), (0.0, 0.8)], "dcr": [(0.1, 0.1), (0.0, 0.1), (0.2, 0.4)]}
    runs = {
        seed: results(
            drops=[
                (m, a, d) for m, of in lost.items() for a, d in zip(("rot13", "base64"), of[n], strict=True)
            ]
        )
        for n, seed in enumerate([0, 1, 4])
    }
    stl, dcr = summarize_measures(runs, "stl")
    assert (stl.measure, stl.method, dcr.method) == ("attack_drop", "stl", "dcr")
    assert stl.values == pytest.approx([0.2, 0.2, 0.4])
    assert dcr.values == pytest.approx([0.1, 0.05, 0.3])
    expected = ttest_rel(dcr.values, stl.values).confidence_interval(0.95)
    assert (dcr.low, dcr.high) == pytest.approx((expected.low, expected.high))


def test_what_attacks_take_is_a_mean_over_those_that_all_have() -> None:
    easy, hard = "rot13", "base64"
    both = [("stl", easy, 0.1), ("stl", hard, 0.9), ("dcr", easy, 0.2), ("dcr", hard, 0.5)]
    one = [("stl", easy, 0.2), ("stl", hard, 0.9), ("dcr", easy, 0.1)]
    stl, dcr = summarize_measures({0: results(drops=both), 1: results(drops=one)}, "stl")
    assert (stl.values, dcr.values) == ([0.1, 0.2], [0.2, 0.1])
    other = [("stl", hard, 0.9), ("dcr", easy, 0.1)]
    assert summarize_measures({0: results(drops=both), 1: results(drops=other)}, "stl") == []


def test_what_any_seed_lacks_is_left_out():
    assert summarize_measures({0: results(), 1: results()}, "stl") == []
    some = results(abilities=[("dcr", 0.4, 0.8)])
    assert summarize_measures({0: results(), 1: some}, "stl") == []
    assert summarize_measures({0: some, 1: results()}, "stl") == []
