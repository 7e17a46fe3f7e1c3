"""Exports of a run whose texts are hostile: nothing breaks, and nothing is lost but what has no bytes in UTF-8."""

import csv

import pandas as pd
from inspect_ai.log import read_eval_log

from discernment.files import read_json_lines
from discernment.reporting.exports.gathered import gather, home_of
from discernment.reporting.exports.inspect_logs import write_inspect_logs
from discernment.reporting.exports.sample_table import write_samples_csv, write_samples_parquet
from discernment.reporting.text import visible


def completions(run, method):
    """What a method of the run replied, by prompt, as the run's file has it but for halves of surrogate pairs."""
    (number,) = [n for n, name in enumerate(("base", "stl", "stl_aug", "dcr")) if name == method]
    path = run / "stages" / f"evaluate-{number:012x}" / "samples.jsonl"
    rows = [row for _, row in read_json_lines(path)]
    found = {r["prompt_id"]: r["completion"].replace("\ud800", "\N{REPLACEMENT CHARACTER}") for r in rows}
    assert any("\N{REPLACEMENT CHARACTER}" in text for text in found.values())
    assert any("\x1b" in text for text in found.values())
    return found


def test_hostile_texts_come_through_as_they_are(built_run, tmp_path):
    gathered = gather(built_run)
    assert home_of(built_run) == built_run / "export"
    assert [replies.name for replies in gathered.replies] == ["base", "stl", "stl_aug", "dcr"]
    paths = write_inspect_logs(gathered, tmp_path / "logs")
    assert [path.name for path in paths] == ["base.eval", "stl.eval", "stl_aug.eval", "dcr.eval"]
    log = read_eval_log(str(paths[3]))
    expected = completions(built_run, "dcr")
    assert {s.id.rpartition("/")[2]: s.output.completion for s in log.samples} == expected
    assert log.eval.viewer.trust_content is False
    assert (log.eval.created, log.stats.completed_at) == (
        "2026-03-02T09:14:07+00:00",
        "2026-03-02T09:25:31+00:00",
    )
    write_samples_parquet(gathered, tmp_path / "samples.parquet")
    table = pd.read_parquet(tmp_path / "samples.parquet")
    own = table[table["method"] == "dcr"]
    assert dict(zip(own["prompt_id"], own["completion"], strict=True)) == expected
    write_samples_csv(gathered, tmp_path / "samples.csv")
    with (tmp_path / "samples.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == len(table)
    assert all(visible(value) == value for row in rows for value in row.values())


def test_names_that_no_file_can_have(build_run, tmp_path):
    run = build_run(tmp_path / "run", methods=("a/b", "a:b", "a-b"), hostile=False)
    paths = write_inspect_logs(gather(run), tmp_path / "logs")
    assert [path.name for path in paths] == ["a-b.eval", "a-b (2).eval", "a-b (3).eval"]
    assert [read_eval_log(str(path)).eval.metadata["method"] for path in paths] == ["a/b", "a:b", "a-b"]
