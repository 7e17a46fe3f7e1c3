"""Numbers over several seeds against those of each seed, against sklearn, and in simulated studies of known truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.stats import norm, ttest_rel
from sklearn.metrics import roc_auc_score

from discernment.evaluation.groups import Group
from discernment.evaluation.over_seeds import SeedComparison, SeedResults, compare_over_seeds, summarize_seeds
from discernment.evaluation.results import summarize
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.statistics.equal_safety import AtEqualSafety, compare_scores

TOXIC, SEEMING = Label.TOXIC, Label.SEEMINGLY_TOXIC
Runs = dict[int, dict[str, list[Sample]]]


def samples(
    benchmark: str,
    label: Label,
    probabilities: Sequence[float | None],
    refused: Sequence[bool] | None = None,
    unscored: Sequence[int] = (),
    frames: int | None = None,
) -> list[Sample]:
    """One sample a probability; without `refused`, those above a half are refused."""
    found = []
    for n, p in enumerate(probabilities):
        is_refused = (p or 0) > 0.5 if refused is None else refused[n]
        found.append(
            Sample(
                prompt_id=f"{label}-{n}",
                benchmark=benchmark,
                label=label,
                prompt="?",
                frame=str(n % frames) if frames else None,
                completion="!",
                finished=True,
                verdict=Verdict.UNSCORED
                if n in unscored
                else Verdict.REFUSAL
                if is_refused
                else Verdict.COMPLIANCE,
                rejection_probability=None if p is None else float(p),
            )
        )
    return found


def summary(runs: Mapping[int, Mapping[str, Sequence[Sample]]], resamples: int = 200) -> SeedResults:
    return summarize_seeds(runs, base_model="base", reference="stl", resamples=resamples)


def simulated(
    rng: np.random.Generator,
    gain: float,
    *,
    seeds: int = 4,
    n: int = 80,
    spread: tuple[float, float, float] = (0.15, 0.7, 0.7),
    benchmarks: tuple[str, ...] = ("bench",),
) -> Runs:
    """Scores of toxic prompts are normal around 0.5 (dcr: 0.5 + gain), those of the others around 0.

    Of `spread`, the first moves all toxic scores of a method with a seed, the second is a prompt's own, alike for both
    methods and all seeds, the third is new with each method, seed and prompt.
    """
    by_seed, by_prompt, by_cell = spread
    sources = {(b, label): rng.normal(0, by_prompt, n) for b in benchmarks for label in (TOXIC, SEEMING)}
    runs: Runs = {}
    for seed in range(seeds):
        runs[seed] = {}
        for method, shift in (("stl", 0.5), ("dcr", 0.5 + gain)):
            moved = shift + rng.normal(0, by_seed)
            runs[seed][method] = [
                sample
                for (benchmark, label), own in sources.items()
                for sample in samples(
                    benchmark,
                    label,
                    norm.cdf(own + rng.normal(0, by_cell, n) + (moved if label is TOXIC else 0)).tolist(),
                )
            ]
    return runs


def only(results: SeedResults, quantity: str, **fields: object) -> SeedComparison:
    (row,) = [
        r
        for r in results.comparisons
        if r.quantity == quantity and all(getattr(r, key) == value for key, value in fields.items())
    ]
    return row


def scores(run: Sequence[Sample], label: Label) -> list[float]:
    return [s.rejection_probability or 0 for s in run if s.label is label]


def group(run: Mapping[str, Sequence[Sample]], method: str, label: Label) -> Group:
    return Group(method, "bench", label, [s for s in run[method] if s.label is label])


def at_equal_safety(run: Mapping[str, Sequence[Sample]], share: float, resamples: int) -> AtEqualSafety:
    """Both methods of one seed where each refuses `share` of the toxic prompts."""
    of_methods = {
        m: (np.array(scores(run[m], TOXIC)), np.array(scores(run[m], SEEMING))) for m in ("stl", "dcr")
    }
    found = compare_scores(of_methods, "stl", share, resamples=resamples)["dcr"].equal_safety
    assert found is not None
    return found


# ---------------------------------------------------------------------- the values


def test_values_are_those_of_each_seed() -> None:
    runs = simulated(np.random.default_rng(0), 0.6)
    results = summary(runs)
    assert (results.seeds, results.methods, results.benchmarks) == ([0, 1, 2, 3], ["stl", "dcr"], ["bench"])
    assert [(r.quantity, r.label) for r in results.comparisons] == [
        ("rate", TOXIC),
        ("rate", SEEMING),
        ("equal_safety", SEEMING),
        ("auroc", SEEMING),
    ]

    auroc = only(results, "auroc")
    for values, method in ((auroc.values, "dcr"), (auroc.values_against, "stl")):
        expected = [
            roc_auc_score([1] * 80 + [0] * 80, scores(run[method], TOXIC) + scores(run[method], SEEMING))
            for run in runs.values()
        ]
        assert values == pytest.approx(expected)

    equal = only(results, "equal_safety")
    for n, run in enumerate(runs.values()):
        share = float(np.mean([p > 0.5 for p in scores(run["stl"], TOXIC)]))
        alone = at_equal_safety(run, share, resamples=20)
        assert equal.values[n] == pytest.approx(alone.compliance)
        assert equal.values_against[n] == pytest.approx(alone.compliance_against)

    for row in results.comparisons:
        assert row.difference == pytest.approx(np.mean(row.values) - np.mean(row.values_against))
        assert row.seeds_low <= row.difference <= row.seeds_high
        assert row.low <= row.difference <= row.high
        assert (row.method, row.against, row.n) == ("dcr", "stl", 80)
        assert row.toxic == (None if row.quantity == "rate" else "bench")


@pytest.mark.parametrize("label", [TOXIC, SEEMING])
def test_rates_are_compared_as_without_a_summary(label: Label) -> None:
    runs = simulated(np.random.default_rng(1), 0.6)
    expected = compare_over_seeds(
        [(group(run, "dcr", label), group(run, "stl", label)) for run in runs.values()]
    )
    assert expected is not None
    row = only(summary(runs), "rate", label=label)
    assert np.subtract(row.values, row.values_against) == pytest.approx(expected.differences)
    assert (row.seeds_low, row.seeds_high) == expected.over_seeds
    assert (row.low, row.high) == expected.over_both


def test_a_rate_counts_the_prompts_with_a_verdict_everywhere() -> None:
    """By hand: the prompts 0 and 3 have none somewhere; of 1, 2 and 4, stl answers 1, and dcr 2 and then 3."""
    answered = {
        (0, "stl"): ([1, 1, 0, 1, 0], [0]),
        (0, "dcr"): ([1, 1, 1, 1, 0], []),
        (1, "stl"): ([0, 1, 0, 0, 0], []),
        (1, "dcr"): ([0, 1, 1, 0, 1], [3]),
    }
    runs: Runs = {0: {}, 1: {}}
    for (seed, method), (right, unscored) in answered.items():
        runs[seed][method] = samples("bench", SEEMING, [None] * 5, [not r for r in right], unscored)
    (row,) = summary(runs).comparisons  # nothing is toxic, and no rejection probability was measured
    assert row.values == pytest.approx([2 / 3, 1])
    assert row.values_against == pytest.approx([1 / 3, 1 / 3])
    assert (row.n, row.difference) == (3, pytest.approx(0.5))


def test_several_benchmarks_are_pooled_as_well() -> None:
    runs = simulated(np.random.default_rng(2), 0.4, n=30, benchmarks=("one", "two"))
    results = summary(runs, resamples=50)
    rows = [(r.quantity, r.benchmark, r.toxic) for r in results.comparisons if r.label is SEEMING]
    assert sorted(rows, key=str) == sorted(
        [("rate", b, None) for b in ("one", "two", "all")]
        + [("equal_safety", b, "all") for b in ("one", "two", "all")]
        + [("auroc", b, t) for b in ("one", "two", "all") for t in ("one", "two", "all")],
        key=str,
    )
    pooled = only(results, "auroc", benchmark="all", toxic="all")
    one = runs[0]["dcr"]
    assert pooled.n == 60
    assert pooled.values[0] == pytest.approx(
        roc_auc_score([s.label is TOXIC for s in one], [s.rejection_probability for s in one])
    )


# ---------------------------------------------------------------------- the intervals


def test_equal_methods_do_not_differ() -> None:
    runs = simulated(np.random.default_rng(3), 0.0)
    for run in runs.values():
        run["dcr"] = run["stl"]
    found = summary(runs).comparisons
    assert len(found) == 4
    missed = 1 - 0.025 ** (1 / 80)
    for row in found:
        assert (row.difference, row.low, row.high) == pytest.approx((0, -missed, missed))
        assert (row.seeds_low, row.seeds_high) == (-1, 1)  # of other seeds, three that agree say nothing
        assert row.values == row.values_against


def test_seeds_alone_have_the_t_interval_of_their_differences() -> None:
    for row in summary(simulated(np.random.default_rng(4), 0.6)).comparisons:
        expected = ttest_rel(row.values, row.values_against).confidence_interval()
        assert (row.seeds_low, row.seeds_high) == pytest.approx((expected.low, expected.high))


def test_identical_seeds_leave_the_bootstrap_over_prompts() -> None:
    """Then there is neither chance of seeds nor interaction, and one seed says as much as all."""
    (run,) = simulated(np.random.default_rng(5), 0.6, seeds=1, n=200).values()
    found = only(summary({0: run, 1: run, 2: run}, resamples=1000), "auroc")
    alone = at_equal_safety(run, 0.5, resamples=1000)
    assert alone.auroc_difference_low is not None and alone.auroc_difference_high is not None
    assert (found.seeds_low, found.seeds_high) == (-1, 1)
    width = alone.auroc_difference_high - alone.auroc_difference_low
    assert found.high - found.low == pytest.approx(width, rel=0.02)  # t with 199 degrees of freedom


@pytest.mark.parametrize(
    "spread",
    [
        (0.15, 0.7, 0.7),
        pytest.param((0.0, 0.3, 0.95), marks=pytest.mark.slow),
        pytest.param((0.3, 0.9, 0.4), marks=pytest.mark.slow),
    ],
    ids=["balanced", "interaction", "seeds"],
)
def test_a_known_gain_is_recovered_and_covered(spread: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(6)
    found = [summary(simulated(rng, 0.5, spread=spread, seeds=3, n=60), 100) for _ in range(60)]
    by_seed, within = spread[0] ** 2, spread[1] ** 2 + spread[2] ** 2
    auroc = norm.cdf(np.array([1.0, 0.5]) / np.sqrt(2 * within + by_seed))
    # stl answers a half of the harmless prompts; at its safety, the threshold of dcr is what their toxic scores lie apart.
    truths = {
        "auroc": auroc[0] - auroc[1],
        "equal_safety": norm.cdf(0.5 / np.sqrt(within + 2 * by_seed)) - 0.5,
    }
    for quantity, truth in truths.items():
        rows = [only(results, quantity) for results in found]
        assert np.mean([r.difference for r in rows]) == pytest.approx(truth, abs=0.03)
        covered = np.mean([r.low <= truth <= r.high for r in rows])
        assert covered >= 0.9
        assert (
            np.median([r.high - r.low for r in rows]) < 1
        )  # the whole range, which is 2 wide, covers everything


def test_interval_over_both_is_wider_than_a_bootstrap_over_prompts() -> None:
    """Which is done here by brute force: the same prompts are drawn for all seeds."""
    runs = simulated(np.random.default_rng(7), 0.5, seeds=3, n=50)
    row = only(summary(runs), "auroc")
    above = {
        (seed, method): np.greater.outer(scores(run[method], TOXIC), scores(run[method], SEEMING))
        for seed, run in runs.items()
        for method in run
    }
    rng, means = np.random.default_rng(0), []
    for _ in range(400):
        drawn = np.ix_(rng.integers(0, 50, 50), rng.integers(0, 50, 50))
        gaps = [above[seed, "dcr"][drawn].mean() - above[seed, "stl"][drawn].mean() for seed in runs]
        means.append(np.mean(gaps))
    low, high = np.quantile(means, [0.025, 0.975])
    assert low < row.difference < high
    assert high - low < row.high - row.low < 3 * (high - low)


def test_interaction_counts_as_in_the_exact_table() -> None:
    """With one score for all toxic prompts, the AUROC is the compliance rate, whose interval needs no bootstrap."""
    rng = np.random.default_rng(9)
    runs: Runs = {
        seed: {
            method: samples("bench", TOXIC, [0.5] * 40) + samples("bench", SEEMING, rng.random(40) < refused)
            for method, refused in (("stl", 0.6), ("dcr", 0.4))
        }
        for seed in range(3)
    }
    found = summary(runs, resamples=4000)
    rate, auroc = only(found, "rate", label=SEEMING), only(found, "auroc")
    assert auroc.values == pytest.approx(rate.values)
    assert auroc.high - auroc.low == pytest.approx(rate.high - rate.low, rel=0.05)


def test_few_clusters_claim_nothing() -> None:
    rng = np.random.default_rng(8)
    runs: Runs = {
        seed: {
            method: samples("bench", TOXIC, rng.random(40).tolist(), frames=1)
            + samples("bench", SEEMING, (rng.random(40) / 2).tolist())
            for method in ("stl", "dcr")
        }
        for seed in range(3)
    }
    for quantity in ("auroc", "equal_safety"):
        row = only(summary(runs), quantity)
        assert (row.low, row.high) == (-1, 1)
        assert row.seeds_low <= row.difference <= row.seeds_high


# ---------------------------------------------------------------------- what cannot be said


def test_fewer_than_two_seeds() -> None:
    runs = simulated(np.random.default_rng(0), 0.5, seeds=1)
    with pytest.raises(ValueError, match="at least two seeds, not 1"):
        summary(runs)
    with pytest.raises(ValueError, match="at least two seeds, not 0"):
        summary({})


@pytest.mark.parametrize("label", [TOXIC, SEEMING])
def test_a_benchmark_with_one_label_has_rates_alone(label: Label) -> None:
    rng = np.random.default_rng(0)
    runs = {
        seed: {m: samples("bench", label, rng.random(20).tolist()) for m in ("stl", "dcr")}
        for seed in range(2)
    }
    assert [(r.quantity, r.label) for r in summary(runs).comparisons] == [("rate", label)]


@pytest.mark.parametrize("refused", [False, True])
def test_a_reference_that_refuses_none_has_no_equal_safety_and_one_that_refuses_all_has(
    refused: bool,
) -> None:
    runs = simulated(np.random.default_rng(0), 0.5, n=40)
    runs[2]["stl"] = [s for s in runs[2]["stl"] if s.label is SEEMING] + samples(
        "bench", TOXIC, scores(runs[2]["stl"], TOXIC), [refused] * 40
    )
    found = {r.quantity: r for r in summary(runs, resamples=20).comparisons}
    assert set(found) == {"rate", "auroc"} | ({"equal_safety"} if refused else set())
    if refused:  # where 38 of 40 are refused, in the third seed
        threshold = sorted(scores(runs[2]["stl"], TOXIC))[2]
        answered = np.mean([p < threshold for p in scores(runs[2]["stl"], SEEMING)])
        assert list(runs).index(2) == 2
        assert found["equal_safety"].values_against[2] == pytest.approx(answered)


def test_a_single_method_has_nothing_to_be_compared_with() -> None:
    runs = simulated(np.random.default_rng(0), 0.5, n=10)
    alone = summary({seed: {"stl": run["stl"]} for seed, run in runs.items()})
    assert (alone.methods, alone.comparisons) == (["stl"], [])


# ---------------------------------------------------------------------- fixed levels of safety


def test_levels_over_seeds_are_those_of_each_seed() -> None:
    runs = simulated(np.random.default_rng(5), 0.8, seeds=3, n=60, benchmarks=("one", "two"))
    found = summary(runs).safety_levels
    assert [(r.benchmark, r.level, r.toxic) for r in found if r.quantity == "safety_level"] == [
        (name, level, "all") for name in ("one", "two", "all") for level in (0.8, 0.9, 0.95)
    ]
    assert [(r.benchmark, r.n) for r in found if r.quantity == "strict_compliance"] == [
        ("one", 60), ("two", 60), ("all", 120),
    ]  # fmt: skip
    for place, seed in enumerate(runs):
        alone = summarize(runs[seed], base_model="base", reference="stl").safety_levels
        expected = {(r.method, r.harmless, r.measure == "compliance", r.level): r.value for r in alone}
        for r in found:
            key = (r.benchmark, r.quantity == "safety_level", r.level)
            assert r.values[place] == pytest.approx(expected["dcr", *key])
            assert r.values_against[place] == pytest.approx(expected["stl", *key])
    for r in found:
        assert r.difference == pytest.approx(np.mean(np.subtract(r.values, r.values_against)))
        assert r.low < r.difference < r.high


def test_a_benchmark_with_few_prompts_claims_no_interval_at_fixed_levels() -> None:
    runs = simulated(np.random.default_rng(6), 0.8, seeds=3, n=60)
    for run in runs.values():
        for method, found in run.items():
            run[method] = [*found, *samples("few", SEEMING, [0.1, 0.4, 0.5])]
    found = {(r.quantity, r.benchmark): r for r in summary(runs).safety_levels}
    few = found["strict_compliance", "few"]
    assert (few.low, few.high, few.n) == (-1, 1, 3)
    assert found["strict_compliance", "all"].high < 1


@pytest.mark.parametrize("gain", [0.0, 0.9])
def test_strict_compliance_over_seeds_holds_the_truth(gain: float) -> None:
    """Scores are normal with variance 1: at a level s, compliance is Phi(shift + Phi^-1(1 - s))."""
    shares = np.linspace(0.8, 1, 2001)[:-1] + 0.00005

    def truth(shift: float) -> float:
        # The spread of the seeds moves the toxic scores too; without it the shift is the whole truth.
        return float(norm.cdf(shift + norm.ppf(1 - shares)).mean())

    expected, held = truth(0.5 + gain) - truth(0.5), []
    for seed in range(12):
        spread = (0.0, np.sqrt(0.5), np.sqrt(0.5))
        runs = simulated(np.random.default_rng(seed), gain, seeds=3, n=80, spread=spread)
        (row,) = (r for r in summary(runs, 100).safety_levels if r.quantity == "strict_compliance")
        held.append(row.low <= expected <= row.high)
    assert sum(held) >= 9
