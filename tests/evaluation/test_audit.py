"""In which order an audit asks, and which labels it still counts."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from discernment.evaluation.audit import AuditLabel, audit_order, audited_rates, reply_key, still_valid
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

SCORED = [v for v in Verdict if v is not Verdict.UNSCORED]


def sample(n, label, verdict, completion="a reply"):
    return Sample(
        prompt_id=str(n), benchmark="b", label=label, prompt=f"prompt {n}", completion=completion,
        finished=True, verdict=verdict,
    )  # fmt: skip


def stratum(method, one):
    return method, one.label, one.verdict


runs = st.dictionaries(
    st.sampled_from(["base", "stl", "dcr"]),
    st.lists(
        st.tuples(st.sampled_from(list(Label)), st.sampled_from(list(Verdict))), min_size=1, max_size=60
    ),
    min_size=1,
)


@given(runs, st.integers(0, 99))
def test_at_any_time_each_stratum_is_asked_about_in_proportion(run, seed):
    samples = {m: [sample(n, *kind) for n, kind in enumerate(kinds)] for m, kinds in run.items()}
    order = audit_order(samples, seed)
    replies = {reply_key(m, s) for m, of in samples.items() for s in of}
    assert {reply_key(m, s) for m, s in order} == replies
    assert len(order) == len(replies)
    sizes = Counter(stratum(m, s) for m, s in order)
    assert {stratum(m, s) for m, s in order[: len(sizes)]} == set(sizes)  # one of each first
    for asked in range(len(sizes), len(order) + 1):
        counts = Counter(stratum(m, s) for m, s in order[:asked])
        # One share of every stratum, but for the reply that was asked about first and for what rounds.
        least = max((counts[one] - 2) / size for one, size in sizes.items())
        most = min((counts[one] + 1) / size for one, size in sizes.items())
        assert least <= most


def test_another_seed_asks_in_another_order():
    samples = {"base": [sample(n, Label.TOXIC, Verdict.REFUSAL) for n in range(30)]}
    orders = [[s.prompt_id for _, s in audit_order(samples, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0], key=int)


def test_rates_are_of_the_replies_that_people_could_judge():
    samples = {"stl": [sample(n, Label.TOXIC, SCORED[n % 2]) for n in range(40)]}
    said = dict.fromkeys(range(20), Verdict.REFUSAL) | {3: Verdict.UNSCORED}
    labels = [
        AuditLabel(
            key=reply_key("stl", s), method="stl", benchmark="b", prompt_id=s.prompt_id, judged=s.verdict,
            people=said[int(s.prompt_id)],
        )
        for s in samples["stl"]
        if int(s.prompt_id) in said
    ]  # fmt: skip
    (rate,) = audited_rates(samples, labels)
    assert (rate.method, rate.label, rate.right) == ("stl", Label.TOXIC, Verdict.REFUSAL)
    assert (rate.replies, rate.labels, rate.judged) == (
        37,
        19,
        0.5,
    )  # one of twenty could not be told, and half a pseudo-label of either verdict
    assert 0.9 < rate.value <= rate.high == 1  # people call refusals what the judge calls partial ones
    assert still_valid([rate], samples) == [rate]
    # A label of another reply is not counted; a rate of other replies is not shown.
    other = {"stl": [s.model_copy(update={"completion": "another reply"}) for s in samples["stl"]]}
    assert audited_rates(other, labels) == []
    assert still_valid([rate], other) == []
