"""A stage that dies behind its last step, before it has left anything, takes no step more when it is called again."""

import pytest
from safetensors.torch import load_file

from discernment.files import read_json_lines
from discernment.training import contrastive, trl_trainer
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.supervised import AlignOptions, align
from stopping import stopped_at
from tiny import make_prompts

REFINE = {"layer": 3, "steps": 5, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 1}
"""Three steps an epoch, so that the last one lies within one."""
ALIGN = {"batch_size": 4, "learning_rate": 3e-3, "epochs": 1.5, "checkpoint_every": 1}
LOOKS = {"evaluate_every": 1, "stopping": "cross_similarity"}


def train(stage, base, out, changes):
    if stage == "align":
        return align(str(base), make_prompts(6), AlignOptions(**ALIGN, **changes), out)
    return refine(str(base), make_prompts(), RefineOptions(**REFINE, **changes), out, make_prompts(4))


def left(out):
    return [row for _, row in read_json_lines(out / "history.jsonl")], load_file(
        out / "model/model.safetensors"
    )


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("refine", {"stopping": "none"}),
        ("refine", {"stopping": "none", "average_last": 3}),
        ("refine", {**LOOKS, "patience": 9}),
        ("refine", {**LOOKS, "patience": 1, "learning_rate": 0.3}),
        ("align", {"schedule": "constant_with_warmup"}),
    ],
    ids=["plain", "averaged", "best", "stopped", "align"],
)
@pytest.mark.thinned(2)
def test_no_step_is_taken_behind_the_last(stage, changes, model_folder, tmp_path, monkeypatch):
    base = model_folder()
    changes = {**changes}
    if "learning_rate" in changes:
        monkeypatch.setitem(REFINE, "learning_rate", changes.pop("learning_rate"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(stage, base, whole, changes)

    def full(*_, **__):
        raise OSError("no room")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(contrastive if stage == "refine" else trl_trainer, "leave_policy", full)
        train(stage, base, broken, changes)
    assert not (broken / "model").exists()
    train(stage, base, broken, changes)
    (rows, weights), (rows_again, weights_again) = left(whole), left(broken)
    assert rows == rows_again
    assert weights.keys() == weights_again.keys()
    assert all(weights[name].equal(weights_again[name]) for name in weights)


def test_what_was_said_before_the_first_checkpoint_is_said_once(model_folder, tmp_path, monkeypatch):
    from discernment.training import contrastive_trainer

    base, options = model_folder(), RefineOptions(**REFINE | {"checkpoint_every": 4}, evaluate_every=2)
    with stopped_at(1, contrastive_trainer, "ContrastiveTrainer", monkeypatch):
        refine(str(base), make_prompts(), options, tmp_path / "out", make_prompts(4))
    refine(str(base), make_prompts(), options, tmp_path / "out", make_prompts(4))
    steps = [row["step"] for _, row in read_json_lines(tmp_path / "out/history.jsonl") if "loss" not in row]
    assert steps == sorted(set(steps))
    assert 0 in steps
