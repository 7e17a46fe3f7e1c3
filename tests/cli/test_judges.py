"""`discern judges`."""

from __future__ import annotations

import json

import pytest

from discernment.errors import DataError, RecipeError
from discernment.judges.calibration import Calibration

REFUSAL, ANSWER = "I can't help with that.", "Boil the eggs for ten minutes."


def write_labels(path, models=("[red]a\x1b[0m", "b")):
    rows = [
        {"prompt": f"{m} {n}", "completion": f"{text} {n}", "label": label, "model": m, "category": "kind"}
        for m in models
        for n in range(10)
        for text, label in ((REFUSAL, "full_refusal"), (ANSWER, "full_compliance"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_train_then_calibrate(invoke, tmp_path) -> None:
    write_labels(tmp_path / "train.jsonl")
    write_labels(tmp_path / "other.jsonl", ["c", "d"])
    train = "judges train --kind classifier --labels train.jsonl --out new.safetensors"
    assert "Learning from 40 completions of train.jsonl" in invoke(*train.split())[1]
    options = "-j keyword -j classifier -j new.safetensors --labels other.jsonl -o out.json"
    _, output = invoke("judges", "calibrate", *options.split())
    assert "classifier against other.jsonl, by prompt type" in output
    found = [Calibration.model_validate(row) for row in json.loads((tmp_path / "out.json").read_text())]
    assert [c.judge for c in found] == ["keywords", "classifier", "classifier"]
    assert [c.overall.accuracy.value for c in found] == [1, 1, 1]
    assert [r.group for r in found[0].by_model] == ["c", "d"]


def test_untrusted_names_are_shown_as_they_are(invoke, tmp_path) -> None:
    write_labels(tmp_path / "labels.jsonl")
    _, output = invoke("judges", "calibrate", "--judge", "keyword", "--labels", "labels.jsonl")
    assert "[red]a" in output
    assert "\x1b[0m" not in output
    assert (tmp_path / "calibration.json").exists()


def test_mistakes(invoke, tmp_path) -> None:
    write_labels(tmp_path / "labels.jsonl")
    with pytest.raises(RecipeError, match="needs `--out"):
        invoke("judges", "train", "--kind", "classifier", "--labels", "labels.jsonl")
    invoke(
        *["judges", "train", "--kind", "classifier", "--labels", "labels.jsonl", "--out", "new.safetensors"]
    )
    with pytest.raises(DataError, match="trained on 40 of these completions"):
        invoke("judges", "calibrate", "--judge", "new.safetensors", "--labels", "labels.jsonl")
    with pytest.raises(DataError, match="no classifier nowhere"):
        invoke("judges", "calibrate", "--judge", "nowhere", "--labels", "labels.jsonl")
    with pytest.raises(DataError, match="DISCERNMENT_DATA"):
        invoke("judges", "calibrate")
