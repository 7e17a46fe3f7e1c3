"""Runs that left sources out, put together: what one of them lacks."""

import pytest
from rich.console import Console

from discernment.evaluation.left_out import summarize_left_out
from discernment.evaluation.metrics import Ranking
from discernment.evaluation.results import Results
from discernment.prompts import Label
from discernment.reporting.tables.left_out import left_out_table


def results(**aurocs):
    """Results of one run, by the AUROC of each method that has one."""
    return Results(
        base_model="tiny", reference="stl", methods=["stl", "dcr", "served"], benchmarks=["b"], scores=[],
        rankings=[
            Ranking(
                method=method, toxic="b", harmless="b", harmless_label=Label.SEEMINGLY_TOXIC, value=value, low=0, high=1,
                n_toxic=9, n_harmless=9,
            )
            for method, value in aurocs.items()
        ],
        comparisons=[], equal_safety=[], finding="",
    )  # fmt: skip


def shown(found):
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(left_out_table(found))
    return " ".join(capture.get().split())


GROUPS = {"first": ["x"], "second": ["y"]}


def test_a_method_without_a_number_in_some_run_is_left_out_and_named():
    runs = {
        ("first", 0): results(stl=0.5, dcr=0.75, served=0.9),
        ("second", 0): results(stl=0.25, dcr=0.75),
        ("first", 1): results(stl=0.5, dcr=1.0, served=0.9),
        ("second", 1): results(stl=0.25, dcr=0.75),
    }
    found = summarize_left_out(runs, GROUPS)
    assert [row.method for row in found.summaries] == ["stl", "dcr"]
    assert found.summaries[1].difference == pytest.approx((0.375 + 0.5) / 2)
    assert found.summaries[0].low is None  # the reference differs from itself by nothing
    assert len(found.scores) == 10
    assert found.incomplete == ["served"]
    assert "No row for a number that a method lacks in some run: served." in shown(found)


def test_without_a_number_of_the_reference_there_is_no_difference():
    runs = {
        ("first", 0): results(dcr=0.75, stl=0.5, served=0.7),
        ("second", 0): results(dcr=0.75, served=0.9),
    }
    found = summarize_left_out(runs, GROUPS)
    assert [(row.method, row.difference, row.low) for row in found.summaries] == [
        ("dcr", None, None),
        ("served", None, None),
    ]
    assert found.summaries[1].mean == pytest.approx(0.8)
    assert found.incomplete == ["stl"]
    assert "0.800" in shown(found)


def test_a_difference_that_is_the_same_with_each_seed_has_no_interval():
    runs = {(group, seed): results(stl=0.5, dcr=0.75) for group in GROUPS for seed in (0, 1, 2)}
    row = summarize_left_out(runs, GROUPS).summaries[1]
    assert (row.method, row.difference, row.low, row.high) == ("dcr", 0.25, None, None)
    runs["first", 2] = results(stl=0.5, dcr=1.0)
    row = summarize_left_out(runs, GROUPS).summaries[1]
    assert row.low is not None and row.low < row.difference < row.high


def test_where_nothing_is_lacking_nothing_is_said():
    found = summarize_left_out(
        {(group, 0): results(stl=0.5, dcr=0.75, served=0.5) for group in GROUPS}, GROUPS
    )
    assert found.incomplete == []
    assert "No row" not in shown(found)
