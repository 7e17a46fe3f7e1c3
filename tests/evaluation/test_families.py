"""Methods in several strengths: which lines are one family, and how families compare where both reach."""

import pytest

from discernment.evaluation.families import families_of, frontier_differences
from discernment.evaluation.families_over_seeds import frontiers_over_seeds
from discernment.evaluation.groups import RunGroups
from discernment.evaluation.results import summarize
from discernment.evaluation.sample import Sample
from discernment.judges.verdict import Verdict
from discernment.prompts import Label

N = 20
FAMILIES = {"stl": ["stl", "stl strong"], "dcr": ["dcr", "dcr strong"]}


def replies(refused, answered, unscored=0):
    """Samples of a line that refuses and answers so many of the 20 prompts of either label."""
    samples = []
    for label, count, verdict, other in (
        (Label.TOXIC, refused, Verdict.REFUSAL, Verdict.COMPLIANCE),
        (Label.SEEMINGLY_TOXIC, answered, Verdict.COMPLIANCE, Verdict.REFUSAL),
    ):
        for n in range(N):
            said = verdict if n < count else other
            samples.append(
                Sample(
                    prompt_id=f"{label}-{n}",
                    benchmark="bench",
                    label=label,
                    prompt="?",
                    completion="!",
                    finished=True,
                    verdict=Verdict.UNSCORED if n >= N - unscored else said,
                )
            )
    return samples


def run(**lines):
    return {name.replace("_", " "): replies(*counts) for name, counts in lines.items()}


LEVEL = run(stl=(8, 6), stl_strong=(16, 6), dcr=(10, 12), dcr_strong=(18, 12))


def test_lines_of_one_method_on_one_model_are_a_family():
    lines = {
        "stl": ("stl", None),
        "weak": ("scans", None),
        "scans": ("scans", None),
        "scans on dcr": ("scans", "dcr"),
        "stl, 2 epochs": ("stl", None),
    }
    assert families_of(lines) == {"stl": ["stl", "stl, 2 epochs"], "weak": ["weak", "scans"]}


def test_families_are_compared_over_the_levels_that_both_reach():
    [row] = frontier_differences(RunGroups(LEVEL, "stl strong"), FAMILIES)
    assert (row.method, row.against, row.lines, row.lines_against) == ("dcr", "stl", 2, 2)
    assert (row.level_low, row.level_high) == (10 / N, 16 / N)
    # Compliance is the same at both points of either, so it is that all along.
    assert (row.compliance, row.compliance_against) == (pytest.approx(12 / N), pytest.approx(6 / N))
    assert row.difference == pytest.approx(6 / N)
    assert row.difference_low < row.difference < row.difference_high
    assert (row.toxic, row.harmless, row.harmless_label) == ("bench", "bench", Label.SEEMINGLY_TOXIC)
    assert (row.n_toxic, row.n_harmless) == (N, N)


def test_what_one_line_has_no_verdict_for_counts_for_none():
    silent = {**LEVEL, "dcr strong": replies(18, 12, unscored=2)}
    [row] = frontier_differences(RunGroups(silent, "stl"), FAMILIES)
    assert (row.n_toxic, row.n_harmless) == (N - 2, N - 2)
    assert row.compliance == pytest.approx(12 / (N - 2))


def test_families_without_a_common_level_have_a_row_without_numbers():
    apart = run(stl=(1, 6), stl_strong=(4, 6), dcr=(10, 12), dcr_strong=(18, 12))
    [row] = frontier_differences(RunGroups(apart, "stl"), FAMILIES)
    assert (row.level_low, row.difference, row.n_toxic, row.n_harmless) == (None, None, N, N)
    silent = {**apart, "dcr": replies(10, 12, unscored=N)}
    [row] = frontier_differences(RunGroups(silent, "stl"), FAMILIES)
    assert (row.level_low, row.difference, row.n_toxic, row.n_harmless) == (None, None, 0, 0)


def test_there_is_nothing_to_compare_where_the_reference_has_one_strength():
    assert frontier_differences(RunGroups(LEVEL, "stl"), {"dcr": FAMILIES["dcr"]}) == []
    results = summarize(LEVEL, base_model="m", reference="stl")
    assert results.frontiers == []
    assert len(summarize(LEVEL, base_model="m", reference="stl", families=FAMILIES).frontiers) == 1


def test_over_seeds_the_levels_are_those_that_both_reach_with_every_seed():
    other = run(stl=(9, 4), stl_strong=(17, 4), dcr=(7, 14), dcr_strong=(15, 14))
    [row] = frontiers_over_seeds({0: LEVEL, 1: other}, FAMILIES, "stl")
    assert (row.quantity, row.method, row.against) == ("frontier", "dcr", "stl")
    assert (row.level_low, row.level_high) == (10 / N, 15 / N)
    assert row.values == pytest.approx([12 / N, 14 / N])
    assert row.values_against == pytest.approx([6 / N, 4 / N])
    assert row.difference == pytest.approx(8 / N)
    assert row.seeds_low <= row.difference <= row.seeds_high
    assert row.low < row.difference < row.high
    assert (row.benchmark, row.label, row.toxic, row.n) == ("bench", Label.SEEMINGLY_TOXIC, "bench", N)


def test_seeds_without_a_common_level_have_no_row():
    apart = run(stl=(1, 6), stl_strong=(4, 6), dcr=(2, 12), dcr_strong=(5, 12))
    assert frontiers_over_seeds({0: apart, 1: apart}, FAMILIES, "stl")
    assert frontiers_over_seeds({0: LEVEL, 1: apart}, FAMILIES, "stl") == []
