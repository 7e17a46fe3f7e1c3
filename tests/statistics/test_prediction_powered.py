"""Prediction-powered rates: coverage in a simulation, the labels alone, and values by hand."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.proportion import proportion_confint

from discernment.statistics.prediction_powered import powered_rate

DRAWS = 500


def draw(rng, n, labels, rate, sensitivity, specificity):
    """Replies, a judge of known error, and labels in proportion to its verdicts."""
    people = rng.random(n) < rate
    judged = np.where(people, rng.random(n) < sensitivity, rng.random(n) >= specificity)
    labelled = []
    for verdict in (True, False):
        own = np.flatnonzero(judged == verdict)
        count = min(len(own), max(1, round(labels * len(own) / n)))
        labelled += rng.choice(own, count, replace=False).tolist()
    chosen = np.array(labelled)
    return people, powered_rate(judged, judged.astype(np.int64), chosen, people[chosen])


@pytest.mark.parametrize(
    ("n", "labels", "rate", "sensitivity", "specificity"),
    [(400, 80, 0.5, 0.9, 0.9), (400, 60, 0.2, 0.8, 0.95), (300, 100, 0.7, 0.85, 0.85)],
)
def test_the_interval_covers_the_truth_and_is_narrower_than_that_of_the_labels(
    n, labels, rate, sensitivity, specificity
):
    rng = np.random.default_rng(0)
    held, widths, alone = 0, [], []
    for _ in range(DRAWS):
        people, found = draw(rng, n, labels, rate, sensitivity, specificity)
        held += found.low <= rate <= found.high
        widths.append(found.high - found.low)
        low, high = proportion_confint(people[:labels].sum(), labels, method="wilson")
        alone.append(high - low)
    assert 0.93 <= held / DRAWS <= 0.97
    assert np.mean(widths) < 0.9 * np.mean(alone)


def test_values_by_hand():
    judged = np.array([True] * 6 + [False] * 4)
    people = np.array([True] * 5 + [False] * 5)
    everything = np.arange(10)
    found = powered_rate(judged, judged.astype(np.int64), everything, people)
    # Half a label of each kind more in both strata: (5 + .5) / 7 of six, (0 + .5) / 5 of four.
    assert found.value == pytest.approx((6 * 5.5 / 7 + 4 * 0.5 / 5) / 10)
    assert found.low < found.value < found.high
    assert found.labels == 10
    assert found.to_halve is None  # there are no more to label
    assert found.kappa == pytest.approx(cohen_kappa_score(people, judged))


def test_a_stratum_without_a_label_has_no_rate():
    judged = np.array([True, True, False])
    assert powered_rate(judged, judged.astype(np.int64), np.array([0, 1]), np.array([True, True])) is None
    nobody = np.array([], dtype=np.int64)
    assert powered_rate(judged, judged.astype(np.int64), nobody, nobody.astype(bool)) is None


def test_so_many_more_labels_halve_the_interval():
    rng = np.random.default_rng(1)
    asked = [draw(rng, 20_000, 60, 0.5, 0.8, 0.8)[1] for _ in range(20)]
    more = round(np.mean([found.to_halve for found in asked]))
    width = np.mean([found.high - found.low for found in asked])
    halved = [draw(rng, 20_000, 60 + more, 0.5, 0.8, 0.8)[1] for _ in range(20)]
    assert np.mean([found.high - found.low for found in halved]) == pytest.approx(width / 2, rel=0.1)


def test_replies_that_nobody_can_tell_do_not_bias_the_rate_of_the_others():
    rng, sizes = np.random.default_rng(0), np.array([100, 100])
    rights, tellable = (
        np.array([0.02, 0.9]),
        np.array([1.0, 0.1]),
    )  # the second verdict is that of empty replies
    truth = sizes @ (rights * tellable) / (sizes @ tellable)
    strata = np.arange(2).repeat(sizes)
    found = []
    for _ in range(DRAWS):
        told, right = rng.random(200) < tellable[strata], rng.random(200) < rights[strata]
        labelled = np.concatenate(
            [rng.choice(np.flatnonzero(strata == s), 40, replace=False) for s in range(2)]
        )
        found.append(powered_rate(strata == 0, strata, labelled, right[labelled], told[labelled]))
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=0.03)
    assert np.mean([one.could_tell for one in found]) == pytest.approx(0.55, abs=0.02)


def test_where_people_can_always_tell_nothing_changes_and_where_never_there_is_no_rate():
    judged = np.array([True] * 6 + [False] * 4)
    given = judged, judged.astype(np.int64), np.arange(10), np.array([True] * 5 + [False] * 5)
    assert powered_rate(*given, np.ones(10, dtype=bool)) == powered_rate(*given)
    assert powered_rate(*given, np.zeros(10, dtype=bool)) is None
