"""Suites are made of benchmarks of the catalogue, and can be read where the sets are at hand."""

import os
from pathlib import Path

import pytest

from discernment.errors import DataError
from discernment.prompts import Label, PromptSource, catalogue, load_source, load_suite, suites

DATA = os.environ.get("DISCERNMENT_DATA")


@pytest.mark.parametrize("name", ["paper", "quick", "full"])
def test_every_suite_asks_for_both_kinds_of_prompts(name: str) -> None:
    sources = load_suite(name)
    assert sources and all(isinstance(source, PromptSource) for source in sources)
    entries = [catalogue()[source.set] for source in sources]
    assert all(entry.benchmark for entry in entries)
    assert len({entry.name for entry in entries}) == len(entries)
    assert {d for entry in entries for d in entry.directions.values()} == {"compliance", "refusal"}


# By hand, and loaded by nobody: a suite that needs them would stop at the first.
FIELD = {"scope", "evorefuse_test", "orfuzz", "xsb", "ms_xsb", "ragrefuse", "health_orsc_hard"}


def test_the_full_suite_leaves_out_only_repeats_noise_and_what_was_never_loaded() -> None:
    benchmarks = {name for name, entry in catalogue().items() if entry.benchmark}
    assert benchmarks - {source.set for source in load_suite("full")} == {"oktest_heldout", "q_harm"} | FIELD
    assert all(catalogue()[name].checked != "file" and not catalogue()[name].hub for name in FIELD)


def test_a_suite_is_a_copy() -> None:
    load_suite("quick").clear()
    assert load_suite("quick")


def test_unknown_suites() -> None:
    assert set(suites()) == {"paper", "quick", "full"}
    with pytest.raises(DataError, match=r"no suite 'fast'; choose one of paper, quick, full"):
        load_suite("fast")


@pytest.mark.skipif(DATA is None, reason="needs the public sets in the folder DISCERNMENT_DATA")
def test_the_quick_suite_is_small_and_even() -> None:
    assert DATA is not None
    prompts = [p for source in load_suite("quick") for p in load_source(source, Path(DATA))]
    toxic = sum(p.label is Label.TOXIC for p in prompts)
    assert 300 <= len(prompts) <= 600
    assert 0.4 <= toxic / len(prompts) <= 0.6


def test_a_set_that_is_not_at_hand_says_how_to_get_it(tmp_path: Path) -> None:
    source = next(source for source in load_suite("full") if source.set == "sorry_bench")
    with pytest.raises(
        DataError, match=r"sorry_bench.jsonl .*huggingface.co/datasets/sorry-bench.*DISCERNMENT_DATA"
    ) as e:
        load_source(source, tmp_path)
    assert "\n" not in str(e.value)
