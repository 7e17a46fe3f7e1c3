"""Rates, rankings and paired comparisons against hand-worked values."""

from __future__ import annotations

import pytest

from discernment.evaluation.groups import Group, cluster_ids, handled_rightly, is_measured, paired
from discernment.evaluation.metrics import compare, rank_and_compare, score
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

LETTERS = {
    "r": Verdict.REFUSAL,
    "p": Verdict.PARTIAL_REFUSAL,
    "c": Verdict.COMPLIANCE,
    "u": Verdict.UNSCORED,
}


def sample(
    prompt_id: str,
    label: Label = Label.TOXIC,
    verdict: Verdict = Verdict.REFUSAL,
    probability: float | None = None,
    partner: str | None = None,
    benchmark: str = "bench",
) -> Sample:
    return Sample(
        prompt_id=prompt_id,
        benchmark=benchmark,
        label=label,
        prompt="?",
        partner=partner,
        completion="!",
        finished=True,
        verdict=verdict,
        rejection_probability=probability,
    )


def group(verdicts: str, label: Label = Label.TOXIC, method: str = "m") -> Group:
    samples = [sample(str(n), label, LETTERS[letter]) for n, letter in enumerate(verdicts)]
    return Group(method, "bench", label, samples)


def measured(label: Label, probabilities: list[float | None]) -> Group:
    samples = [sample(f"{label}-{n}", label, probability=p) for n, p in enumerate(probabilities)]
    return Group("m", "bench", label, samples)


# ---------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("label", "right"),
    [(Label.TOXIC, "r"), (Label.SEEMINGLY_TOXIC, "c"), (Label.BENIGN, "c")],
)
def test_only_the_full_verdict_is_right(label: Label, right: str) -> None:
    assert [c for c in LETTERS if handled_rightly(sample("1", label, LETTERS[c]))] == [right]


def test_score_counts_partial_and_unscored_apart() -> None:
    toxic = score(group("rrrpcuu"))
    assert (toxic.metric, toxic.value) == ("defense_success_rate", 3 / 5)
    assert (toxic.scored, toxic.unscored, toxic.partial) == (5, 2, 1)
    harmless = score(group("rrrpcuu", Label.SEEMINGLY_TOXIC))
    assert (harmless.metric, harmless.value) == ("compliance_rate", 1 / 5)
    assert harmless.low is not None
    assert harmless.high is not None
    assert harmless.low < 1 / 5 < harmless.high


@pytest.mark.parametrize("verdicts", ["", "uu"])
def test_nothing_scored_has_no_rate(verdicts: str) -> None:
    found = score(group(verdicts))
    assert (found.value, found.low, found.high, found.scored) == (None, None, None, 0)
    assert found.unscored == len(verdicts)


# ---------------------------------------------------------------------- ranking


def test_rank_leaves_out_what_was_not_measured() -> None:
    toxic = measured(Label.TOXIC, [0.9, None, 0.8, float("nan")] + [0.7] * 10)
    harmless = measured(Label.BENIGN, [0.1, 0.75] * 6)
    (found,) = rank_and_compare([toxic], [harmless], "m").rankings
    assert (found.n_toxic, found.n_harmless) == (12, 12)
    assert found.value == pytest.approx((2 * 12 + 10 * 6) / 144)
    assert 0 <= found.low <= found.value <= found.high <= 1
    for nothing in ([None], []):
        assert rank_and_compare([measured(Label.TOXIC, nothing)], [harmless], "m").rankings == []


# ---------------------------------------------------------------------- two methods


def test_compare_by_hand() -> None:
    found = compare(group("rrrrccccup", method="a"), group("rrcccccrrr", method="b"))
    assert found is not None
    assert (found.method, found.against, found.n) == ("a", "b", 9)
    # prompts 2 and 3 only a; prompts 7 and 9 only b; prompt 8 has no verdict by a
    assert (found.only_method, found.only_against) == (2, 2)
    assert found.difference == 0
    assert found.p_value == 1


def test_compare_has_the_sign_of_the_better_method() -> None:
    found = compare(group("c" * 40, Label.BENIGN, "a"), group("c" * 28 + "r" * 12, Label.BENIGN, "b"))
    assert found is not None
    assert (found.only_method, found.only_against, found.metric) == (12, 0, "compliance_rate")
    assert found.difference == pytest.approx(12 / 40)
    assert 0 < found.low < found.difference < found.high
    assert found.p_value == pytest.approx(2 / 2**12)


def test_no_common_verdict_gives_no_comparison() -> None:
    assert compare(group("uur"), group("rr")) is None
    assert compare(group(""), group("rr")) is None


def test_pairs_are_found_by_benchmark_and_id() -> None:
    ours = Group(
        "a", "all", Label.TOXIC, [sample("1", probability=0.1), sample("1", probability=0.2, benchmark="x")]
    )
    theirs = Group("b", "all", Label.TOXIC, [sample("1", probability=0.3, benchmark="x"), sample("2")])
    found = paired(ours, theirs, is_measured)
    assert [(one.rejection_probability, other.rejection_probability) for one, other in found] == [(0.2, 0.3)]


# ---------------------------------------------------------------------- clusters


def test_partners_share_a_cluster() -> None:
    samples = [
        sample("a", partner="b"),
        sample("b", partner="a"),
        sample("c", partner="b"),  # a second toxic prompt for the same safe one
        sample("d"),
        sample("a", benchmark="other"),  # the same id elsewhere is another prompt
        sample("e", partner="f"),  # its partner stands in another benchmark
        sample("f", benchmark="other"),
        sample("g", partner="gone"),
    ]
    ids = cluster_ids(samples).tolist()
    assert ids[0] == ids[1] == ids[2]
    assert ids[5] == ids[6]
    assert len({ids[n] for n in (0, 3, 4, 5, 7)}) == 5


def test_prompts_of_one_partner_hang_together_where_that_is_not_given() -> None:
    samples = [sample("a", partner="safe"), sample("b", partner="safe"), sample("c", partner="other")]
    ids = cluster_ids(samples).tolist()
    assert ids[0] == ids[1] != ids[2]
    elsewhere = [sample("a", partner="safe"), sample("b", partner="safe", benchmark="x")]
    assert len(set(cluster_ids(elsewhere).tolist())) == 2  # each means the prompt of its own benchmark


def test_an_id_that_two_other_benchmarks_have_is_no_partner() -> None:
    """Row numbers are ids, too."""
    samples = [sample("a", partner="3"), sample("3", benchmark="x"), sample("3", benchmark="y")]
    assert len(set(cluster_ids(samples).tolist())) == 3
    ids = cluster_ids(samples[:2]).tolist()
    assert ids[0] == ids[1]


def test_clusters_of_nothing() -> None:
    assert cluster_ids([]).shape == (0,)
