from __future__ import annotations

from discernment.reporting.run_files import Manifest
from discernment.reporting.tables.cost import Cost, cost_table

MANIFEST = Manifest.model_validate(
    {
        "stages": {
            "evaluate-1": {"name": "evaluate", "seconds": 10, "tokens": 100, "peak_memory_bytes": 5},
            "refine-2": {"name": "refine", "seconds": 20, "tokens": 200, "peak_memory_bytes": 9},
            "align-3": {"name": "align", "seconds": 30},
            "evaluate-4": {"name": "evaluate", "seconds": 40, "tokens": 400, "peak_memory_bytes": 7},
            "evaluate-5": {"name": "evaluate", "methods": ["late"]},
        },
        "methods": {
            "base": {"stages": ["evaluate-1"]},
            "dcr": {"stages": ["refine-2", "align-3", "evaluate-4"]},
            "dcr_late": {"stages": ["refine-2", "gone"]},
        },
    }
)


def test_costs_by_method_and_stage() -> None:
    table = cost_table(["base", "dcr", "dcr_late", "late", "unknown"], MANIFEST)
    assert table is not None
    assert table.stages == ["refine", "align", "evaluate"]
    rows = {method: (by_stage, together) for method, by_stage, together in table.rows}
    assert list(rows) == ["base", "dcr", "dcr_late", "late"]
    by_stage, together = rows["dcr"]
    assert by_stage == {
        "refine": Cost(20, 200, 9, ["dcr_late"]),
        "align": Cost(30, None, None, []),
        "evaluate": Cost(40, 400, 7, []),
    }
    assert together == Cost(90, 600, 9, [])
    assert rows["late"][1] == Cost(None, None, None, [])


def test_the_run_counts_a_shared_stage_once() -> None:
    table = cost_table(["base", "dcr", "dcr_late"], MANIFEST)
    assert table is not None
    by_stage, together = table.run
    assert by_stage["refine"].seconds == 20
    assert by_stage["evaluate"] == Cost(50, 500, 7, [])
    assert together == Cost(100, 700, 9, [])


def test_no_stages_no_table() -> None:
    assert cost_table(["base"], Manifest()) is None
