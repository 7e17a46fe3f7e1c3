from __future__ import annotations

import io

from rich.console import Console

from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.reporting.pages.examples import changed_examples, freed
from discernment.reporting.tables.freed import freed_table


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


def results_of(*methods: str) -> Results:
    return Results(
        base_model="m", reference=methods[0], methods=list(methods), benchmarks=["b"], scores=[], rankings=[],
        comparisons=[], equal_safety=[], finding="f",
    )  # fmt: skip


def test_the_first_freed_prompts_are_shown_and_both_directions_counted() -> None:
    before = [sample(i, R) for i in range(5)] + [sample(i, C) for i in range(5, 7)]
    before += [sample(i, R, label) for label in (Label.TOXIC, Label.BENIGN) for i in range(4)]
    after = [s.model_copy(update={"verdict": R if s.verdict is C else C}) for s in before]
    after[0] = before[0]
    found = freed(results_of("stl", "dcr", "other"), {"stl": before, "dcr": after, "other": before})
    assert found is not None
    assert (found.label, found.before, found.after) == (Label.SEEMINGLY_TOXIC, "stl", "dcr")
    assert (found.answered, found.refused) == (4, 2)
    assert [e.before.prompt_id for e in found.shown] == ["1", "2", "3"]
    assert all(e.after.verdict is C for e in found.shown)


def test_benign_prompts_stand_in_where_no_other_was_freed() -> None:
    before = [sample(1, C), sample(2, R, Label.BENIGN), sample(3, R, Label.TOXIC)]
    after = [s.model_copy(update={"verdict": C}) for s in before]
    found = freed(results_of("stl", "mine"), {"stl": before, "mine": after})
    assert found is not None
    assert (found.label, found.answered, found.refused, len(found.shown)) == (Label.BENIGN, 1, 0, 1)


def test_nothing_freed_is_nothing_shown() -> None:
    before = [sample(1, C), sample(3, R, Label.TOXIC)]
    assert freed(results_of("stl", "dcr"), {"stl": before, "dcr": before}) is None
    assert freed(results_of("stl"), {"stl": before}) is None
    assert freed(results_of("stl", "dcr"), {}) is None


def test_the_terminal_shows_them_beside_each_other() -> None:
    before = [sample(i, R).model_copy(update={"completion": "No.\n\n[b]Never\x1b[31m"}) for i in range(4)]
    after = [s.model_copy(update={"verdict": C, "completion": "Sure, " + "x" * 500}) for s in before]
    name = "dcr [layer 15]"
    found = freed(results_of("stl", name), {"stl": before, name: after})
    assert found is not None
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(freed_table(found))
    shown = console.export_text()
    assert "Seemingly toxic prompts that stl refuses and dcr [layer 15] answers" in shown
    assert "The first 3 of 4; 0 went the other way." in shown
    assert shown.count("No. [b]Never") == shown.count("Sure, ") == 3
    assert "\x1b" not in shown
    assert "prompt 2" in shown
    assert "prompt 3" not in shown
