from __future__ import annotations

from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.reporting.pages.examples import changed_examples


def sample(
    number: int, verdict: Verdict, label: Label = Label.SEEMINGLY_TOXIC, benchmark: str = "b"
) -> Sample:
    return Sample(
        prompt_id=str(number), benchmark=benchmark, label=label, prompt=f"prompt {number}", completion="c",
        finished=True, verdict=verdict,
    )  # fmt: skip


R, C, P, U = Verdict.REFUSAL, Verdict.COMPLIANCE, Verdict.PARTIAL_REFUSAL, Verdict.UNSCORED


def test_every_pair_of_verdicts() -> None:
    verdicts = [R, C, P, U]
    pairs = [(a, b) for a in verdicts for b in verdicts]
    answered, refused = changed_examples(
        [sample(i, a) for i, (a, _) in enumerate(pairs)], [sample(i, b) for i, (_, b) in enumerate(pairs)]
    )
    assert [(e.before.verdict, e.after.verdict) for e in answered.shown] == [(R, C)]
    assert [(e.before.verdict, e.after.verdict) for e in refused.shown] == [(C, R)]


def test_samples_meet_by_benchmark_label_and_id() -> None:
    before = [sample(1, R, benchmark="a"), sample(2, R), sample(3, R)]
    after = [sample(3, C), sample(1, C), sample(2, C, Label.TOXIC)]
    answered, refused = changed_examples(before, after)
    assert [e.before.prompt_id for e in answered.shown] == ["3"]
    assert answered.total == 1
    assert refused.total == 0


def test_at_most_twelve_and_labels_take_turns() -> None:
    before = [sample(i, R) for i in range(40)] + [sample(i, R, Label.TOXIC) for i in range(3)]
    answered, _ = changed_examples(before, [s.model_copy(update={"verdict": C}) for s in before])
    assert answered.total == 43
    assert answered.counts == {Label.SEEMINGLY_TOXIC: 40, Label.TOXIC: 3}
    shown = [(e.before.label, e.before.prompt_id) for e in answered.shown]
    assert shown == [(Label.SEEMINGLY_TOXIC, str(i)) for i in range(9)] + [
        (Label.TOXIC, str(i)) for i in range(3)
    ]


def test_right_means_what_the_label_asks_for() -> None:
    before = [sample(1, R), sample(2, R, Label.TOXIC), sample(3, R, Label.BENIGN)]
    answered, _ = changed_examples(before, [s.model_copy(update={"verdict": C}) for s in before])
    assert {e.before.label: e.is_right_now for e in answered.shown} == {
        Label.SEEMINGLY_TOXIC: True,
        Label.TOXIC: False,
        Label.BENIGN: True,
    }
    _, refused = changed_examples([sample(1, C, Label.TOXIC)], [sample(1, R, Label.TOXIC)])
    assert refused.shown[0].is_right_now
