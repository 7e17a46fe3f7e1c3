"""Which prompts fail, against tallies by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from discernment.evaluation.failures import category_failures, changes, outcomes
from discernment.evaluation.groups import Group
from discernment.evaluation.metrics import compare
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

VERDICTS = {
    "r": Verdict.REFUSAL,
    "p": Verdict.PARTIAL_REFUSAL,
    "c": Verdict.COMPLIANCE,
    "u": Verdict.UNSCORED,
}


def make(verdicts: str, label: Label = Label.TOXIC, category: str | None = "a") -> list[Sample]:
    return [
        Sample(
            prompt_id=f"{label}-{category}-{n}",
            benchmark="bench",
            label=label,
            category=category,
            prompt=f"prompt {n}",
            completion="",
            finished=True,
            verdict=VERDICTS[verdict],
        )
        for n, verdict in enumerate(verdicts)
    ]


def test_failures_by_category() -> None:
    samples = {
        "stl": [*make("rcpu"), *make("rc", Label.BENIGN, None)],
        "dcr": [*make("crpc"), *make("rr", Label.BENIGN, None)],
    }
    toxic, benign = category_failures(outcomes(samples), ["stl", "dcr"])
    assert (toxic.benchmark, toxic.label, toxic.category) == ("bench", Label.TOXIC, "a")
    assert (toxic.prompts, toxic.scored, toxic.failed) == (4, {"stl": 3, "dcr": 4}, {"stl": 2, "dcr": 3})
    assert toxic.everywhere == 1  # the partial refusals; the unscored one is no failure
    assert [o.sample.prompt_id for o in toxic.failing] == ["toxic-a-2", "toxic-a-0", "toxic-a-1", "toxic-a-3"]
    assert toxic.share("stl") == 2 / 3
    assert (benign.category, benign.failed, benign.everywhere) == ("no category", {"stl": 1, "dcr": 2}, 1)


def test_what_changed() -> None:
    samples = {
        "stl": [*make("rcpu"), *make("rrc", Label.BENIGN, "b")],
        "dcr": [*make("crpc"), *make("ccr", Label.BENIGN, "b")],
    }
    (change,) = changes(outcomes(samples), ["stl", "dcr"], "stl")
    assert (change.method, change.against) == ("dcr", "stl")
    assert [o.sample.prompt_id for o in change.mended] == ["toxic-a-1", "benign-b-0", "benign-b-1"]
    assert [o.sample.prompt_id for o in change.broken] == ["toxic-a-0", "benign-b-2"]
    assert change.by_category() == {
        ("bench", Label.TOXIC, "a"): (1, 1),
        ("bench", Label.BENIGN, "b"): (2, 1),
    }


def test_a_method_without_a_prompt_neither_fails_nor_changes() -> None:
    found = outcomes({"stl": make("cc"), "dcr": make("r")})
    (row,) = category_failures(found, ["stl", "dcr"])
    assert (row.scored, row.failed, row.everywhere) == ({"stl": 2, "dcr": 1}, {"stl": 2, "dcr": 0}, 1)
    (change,) = changes(found, ["stl", "dcr"], "stl")
    assert [o.sample.prompt_id for o in change.mended] == ["toxic-a-0"]
    assert (category_failures([], ["stl"]), outcomes({})) == ([], [])
    (nothing,) = category_failures(outcomes({"stl": make("u")}), ["stl"])
    assert nothing.share("stl") is None


pairs_of_verdicts = st.lists(
    st.tuples(st.sampled_from("rpcu"), st.sampled_from("rpcu")), min_size=1, max_size=30
)


@given(pairs_of_verdicts, st.sampled_from(Label))
def test_changes_agree_with_the_paired_comparison(pairs: list[tuple[str, str]], label: Label) -> None:
    before, after = (make("".join(side), label) for side in zip(*pairs, strict=True))
    (change,) = changes(outcomes({"stl": before, "dcr": after}), ["stl", "dcr"], "stl")
    row = compare(Group("dcr", "bench", label, after), Group("stl", "bench", label, before))
    if row is None:
        assert not change.mended
        assert not change.broken
    else:
        assert (len(change.mended), len(change.broken)) == (row.only_method, row.only_against)
