from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from discernment.errors import RunError
from discernment.reporting.run_files import Manifest, read_run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_everything(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert run.manifest is not None
    assert run.manifest.name == "quickstart"
    assert run.recipe is not None
    assert {method: len(samples) for method, samples in run.samples.items()} == dict.fromkeys(
        ["base", "stl", "stl_aug", "dcr"], 204
    )
    assert [h.methods for h in run.refinements] == [["dcr"]]
    assert [h.methods for h in run.alignments] == [["stl"], ["stl_aug"], ["dcr"]]
    watched = [(w.methods, w.stage, len(w.looks)) for w in run.watches]
    assert watched == [
        (["stl"], "align", 8),
        (["stl_aug"], "align", 8),
        (["dcr"], "refine", 8),
        (["dcr"], "align", 8),
    ]
    assert run.watches[2].looks[-1].step == 80
    assert run.propositions is not None
    assert [check.methods for check in run.propositions.refinements] == [["dcr"]]
    steps, values = run.refinements[0].series("probe_auroc")
    assert steps == [float(s) for s in range(0, 81, 8)]
    assert values[0] == pytest.approx(0.81)


def test_a_shared_stage_belongs_to_all_its_methods(run_dir: Path) -> None:
    manifest = json.loads((run_dir / "manifest.json").read_text())
    align = next(i for i in manifest["methods"]["stl"]["stages"] if i.startswith("align"))
    manifest["methods"]["stl_aug"]["stages"] = [
        align if i.startswith("align") else i for i in manifest["methods"]["stl_aug"]["stages"]
    ]
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    assert ["stl", "stl_aug"] in [h.methods for h in read_run(run_dir).alignments]


def test_what_a_newer_version_adds_is_passed_over(run_dir: Path) -> None:
    edit(run_dir / "manifest.json", weather="fine")
    assert read_run(run_dir).manifest is not None


@pytest.mark.parametrize("version", [1, 2])
def test_both_forms_of_the_manifest_are_read(run_dir: Path, version: int) -> None:
    edit(run_dir / "manifest.json", schema_version=version)
    manifest = read_run(run_dir).manifest
    assert manifest is not None
    assert manifest.schema_version == version
    edit(run_dir / "manifest.json", schema_version=3)
    with pytest.raises(RunError, match=r"manifest\.json .*schema_version"):
        read_run(run_dir)


def test_only_results_are_needed(run_dir: Path) -> None:
    (run_dir / "manifest.json").unlink()
    (run_dir / "recipe.yaml").unlink()
    run = read_run(run_dir)
    assert (run.manifest, run.recipe, run.samples) == (None, None, {})
    assert run.refinements == run.alignments == run.watches == []


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no results\.json .* finish the run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", "{", r"results\.json cannot be read as JSON"),
        ("results.json", "[]", r"results\.json does not have the form"),
        ("results.json", '{"schema_version": 2}', r"results\.json .*schema_version"),
        ("manifest.json", "\x00", r"manifest\.json cannot be read"),
        ("manifest.json", '{"stages": {"a-1": {}}}', r"manifest\.json .*stages\.a-1\.name"),
        ("manifest.json", '{"stages": {"../../etc": {"name": "evaluate"}}}', "not the name of a folder"),
        ("manifest.json", '{"stages": {"..": {"name": "evaluate"}}}', "not the name of a folder"),
        ("proposition.json", '{"refinements": [{}]}', r"proposition\.json .*refinements\.0\.methods"),
    ],
)
def test_damaged_files_are_named(run_dir: Path, file: str, content: str, message: str) -> None:
    (run_dir / file).write_text(content)
    with pytest.raises(RunError, match=message):
        read_run(run_dir)


@pytest.mark.parametrize(
    ("line", "message"), [("{}", "line 2, is not an evaluated sample"), ("nonsense", "line 2, is not JSON")]
)
def test_a_damaged_sample_is_named(run_dir: Path, line: str, message: str) -> None:
    path = next((run_dir / "stages").glob("evaluate-*/samples.jsonl"))
    first, _, *rest = path.read_text().split("\n")
    path.write_text("\n".join([first, line, *rest]))
    with pytest.raises(RunError, match=message):
        read_run(run_dir)


def test_numbers_that_are_not_finite_are_left_out_of_curves(run_dir: Path) -> None:
    path = next((run_dir / "stages").glob("refine-*/history.jsonl"))
    path.write_text('{"step": 1, "loss": NaN, "note": "x"}\n{"step": 2, "loss": 0.5}\n[]\n{"step": 3, "lo')
    assert read_run(run_dir).refinements[0].rows == [{"step": 1.0}, {"step": 2.0, "loss": 0.5}]


def test_a_damaged_look_is_named_and_a_torn_one_passed_over(run_dir: Path) -> None:
    path = next((run_dir / "stages").glob("refine-*/dynamics.jsonl"))
    whole = path.read_text()
    path.write_text(whole + '{"step": 90, "reje')
    assert len(read_run(run_dir).watches[2].looks) == 8
    first, _, *rest = whole.split("\n")
    path.write_text("\n".join([first, '{"step": 1, "rejection": {"polite": 1}}', *rest]))
    with pytest.raises(RunError, match=r"dynamics\.jsonl, line 2, is not a look at probe prompts"):
        read_run(run_dir)
    path.write_text("")
    assert [w.stage for w in read_run(run_dir).watches] == ["align"] * 3


@pytest.mark.parametrize(
    ("stages", "own"),
    [
        ("align", [0]),
        ("refine align vectors evaluate", [0, 1]),
        ("refine refine average align", [0, 1, 3]),
        ("align refine align evaluate", [1, 2]),
        ("refine align align prefer", [2]),
        ("refine align refine", [2]),
        ("direction evaluate", []),
    ],
)
def test_the_training_of_a_method_begins_behind_what_it_stands_on(stages: str, own: list[int]) -> None:
    known = {str(number): {"name": name} for number, name in enumerate(stages.split())}
    content = {"stages": known, "methods": {"m": {"stages": [*known, "gone"]}}}
    assert Manifest.model_validate(content).trained_last("m") == list(map(str, own))
