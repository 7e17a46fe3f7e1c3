# ruff: noqa: RUF001 - the report's own dashes and minus signs
from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from discernment.evaluation.flips import FlipCount
from discernment.evaluation.metrics import Ranking, Score
from discernment.evaluation.results import Ability, Results, TaskScore
from discernment.prompts import Label
from discernment.reporting.tables.measures import MEASURES
from discernment.reporting.tables.methods import columns, results_table, tallies


def score(method: str, value: float | None, low: float | None, high: float | None, **other: Any) -> Score:
    fields: dict[str, Any] = {"benchmark": "starter", "label": Label.TOXIC, "metric": "defense_success_rate"}
    fields |= {"scored": 50, "unscored": 2, "partial": 3}
    return Score(method=method, value=value, low=low, high=high, **(fields | other))


def results(*scores: Score, rankings: tuple[Ranking, ...] = ()) -> Results:
    return Results(
        base_model="m",
        reference=scores[0].method,
        methods=list(dict.fromkeys(s.method for s in scores)),
        benchmarks=list(dict.fromkeys(s.benchmark for s in scores)),
        scores=list(scores),
        rankings=list(rankings),
        comparisons=[],
        equal_safety=[],
        finding="f",
    )


def ranking(method: str, value: float, low: float, high: float, **other: Any) -> Ranking:
    fields: dict[str, Any] = {
        "toxic": "A",
        "harmless": "B",
        "harmless_label": Label.BENIGN,
        "n_toxic": 4,
        "n_harmless": 5,
    }
    return Ranking(method=method, value=value, low=low, high=high, **(fields | other))


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(0.5, 0.6), (0.7, 0.8), (0.61, 0.69)], {"m1"}),
        ([(0.5, 0.7), (0.7, 0.8)], set()),  # touching is not apart
        ([(0.5, 0.72), (0.7, 0.8)], set()),
        ([(0.5, 0.6)], set()),  # nothing to be better than
        ([(0.5, 0.6), None], set()),
        ([(0.0, 0.0), (0.1, 0.2)], {"m1"}),
    ],
)
def test_best_needs_an_interval_apart_and_is_said_of_rankings_alone(
    intervals: list[tuple[float, float] | None], expected: set[str]
) -> None:
    kept = [(None, None, None) if ends is None else (sum(ends) / 2, *ends) for ends in intervals]
    rows = [score(f"m{i}", *of) for i, of in enumerate(kept)]
    ranked = [ranking(f"m{i}", sum(ends) / 2, *ends) for i, ends in enumerate(intervals) if ends is not None]
    rates, aurocs = columns(results(*rows, rankings=tuple(ranked)))
    assert {method for method, cell in aurocs.cells.items() if cell.best} == expected
    assert len(rates.cells) == len(intervals)
    assert not any(cell.best for cell in rates.cells.values())


def test_columns_go_by_label_then_benchmark() -> None:
    found = columns(
        results(
            score("x", 0.5, 0.4, 0.6, benchmark="A"),
            score("x", 0.5, 0.4, 0.6, benchmark="A", label=Label.BENIGN),
            score("x", 0.5, 0.4, 0.6, benchmark="B"),
            score("x", 0.5, 0.4, 0.6, benchmark="A", label=Label.SEEMINGLY_TOXIC),
            rankings=(ranking("x", 0.8, 0.7, 0.9),),
        )
    )
    assert [(c.group.replace("\xa0", " "), c.where) for c in found] == [
        ("Toxic refused, %", "A"),
        ("Toxic refused, %", "B"),
        ("Seemingly toxic answered, %", "A"),
        ("Benign answered, %", "A"),
        ("Discernment AUROC", "B (benign) against A (toxic)"),
    ]


def test_tallies_add_up_over_benchmarks() -> None:
    found = tallies(results(score("x", 0.5, 0.4, 0.6), score("x", 0.1, 0, 0.2, benchmark="B", unscored=5)))
    assert (found["x"].scored, found["x"].partial, found["x"].unscored) == (100, 6, 7)


def test_every_reply_without_a_verdict_is_counted() -> None:
    rows = (
        score("x", 0.5, 0.4, 0.6, unscored=0, unscored_replies=168),
        score("x", 0.5, 0.4, 0.6, benchmark="B"),
    )
    assert tallies(results(*rows))["x"].unscored == 168 + 2  # the second is of a version that counted prompts


def test_terminal_table_shows_numbers_and_takes_names_literally() -> None:
    rows = [score("[red]stl[/red]\x1b[2J", 0.725, 0.6, 0.8), score("dcr", None, None, None)]
    console = Console(width=100, record=True, file=None, force_terminal=True, color_system="truecolor")
    with console.capture() as capture:
        console.print(results_table(results(*rows)))
    shown = capture.get()
    assert "[red]stl[/red]⟨U+001B⟩[2J" in shown
    assert "\x1b[2J" not in shown
    plain = Console(width=100, force_terminal=False)
    with plain.capture() as capture:
        plain.print(results_table(results(*rows)))
    lines = [" ".join(line.split()) for line in capture.get().replace("\xa0", " ").splitlines()]
    assert "Toxic refused, % 72.5 –" in lines
    assert "60.0–80.0" in lines
    assert "Unscored completions 2 2" in lines


def test_ability_tasks_and_flips_have_rows_of_their_own() -> None:
    ability = Ability(
        policy="dcr", base="m", kl=0.0214, kl_low=0.0185, kl_high=0.0251, perplexity=4.1, perplexity_low=3.9,
        perplexity_high=4.4, perplexity_base=4, ratio=1.025, ratio_low=None, ratio_high=None, prompts=9, tokens=90,
    )  # fmt: skip
    tasks = [
        TaskScore(
            policy=policy, task="arc\x1b", metric="acc", filter=how, value=value, standard_error=error, questions=40
        )
        for policy, how, value, error in (
            ("base", "none", 0.5, 0.0791), ("dcr", "none", 0.475, None), ("dcr", "strict", 0.4, 0.02),
        )
    ]  # fmt: skip
    flips = [
        FlipCount(
            method="dcr", batch_size=64, other_batch_size=1, prompts=50, changed=7, flipped=2,
            rejection_change=None,
        )
    ]  # fmt: skip
    plain = results(score("base", 0.5, 0.4, 0.6), score("dcr", 0.5, 0.4, 0.6))
    found = plain.model_copy(update={"abilities": [ability], "tasks": tasks, "flips": flips})

    def lines(shown: Results) -> list[str]:
        console = Console(width=140, force_terminal=False)
        with console.capture() as capture:
            console.print(results_table(shown))
        return [" ".join(line.split()) for line in capture.get().splitlines()]

    shown = lines(found)
    kl = shown.index("KL to the base model, nats (0: alike) – 0.021")
    assert shown[kl - 1 : kl + 4] == [
        "General ability",
        "KL to the base model, nats (0: alike) – 0.021",
        "0.018–0.025",
        "Perplexity ratio to it (above 1: worse) – 1.025",
        "",
    ]
    task = shown.index("Tasks, with standard errors")
    assert shown[task + 1 : task + 5] == [
        "arc⟨U+001B⟩, acc 0.500 0.475", "± 0.079", "arc⟨U+001B⟩, acc (strict) – 0.400", "± 0.020",
    ]  # fmt: skip
    assert [line for line in shown if "batches" in line] == [
        "Prompts with a reply that changes with the batches – 7",
        "Prompts with a verdict that changes with the batches – 2",
    ]
    assert not [line for line in lines(plain) if "ability" in line or "Tasks" in line or "batches" in line]


def test_every_measure_has_rows_in_the_results() -> None:
    fields = [measure.rows for measure in MEASURES.values()]
    assert len(set(fields)) == len(fields) == 8
    assert set(fields) <= set(Results.model_fields)
