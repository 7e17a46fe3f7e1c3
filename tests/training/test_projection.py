"""Training one layer along and against a direction: the targets, the loss, what moves, and that it goes on where it was."""

import pytest
import torch
from safetensors.torch import load_file

from discernment.diagnosis.separability import LayerSeparation, layer_states, separability
from discernment.errors import ModelError, TrainingError
from discernment.files import read_json, read_json_lines
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet
from discernment.training import projection_trainer
from discernment.training.options import LoraOptions
from discernment.training.projection import ProjectionOptions, clearest_middle, project
from discernment.training.projection_trainer import targets
from stopping import stopped_at
from tiny import make_benign, make_prompts

PROMPTS = PromptSet.concatenate([make_prompts(5), make_benign(5)], "all")
OPTIONS = {"layer": 3, "learning_rate": 1e-3, "batch_size": 6, "rounds": 2}


def at_layer(spec, layer):
    return layer_states(Policy.load(spec), PROMPTS)[layer - 1]


def losses(out):
    return [row["loss"] for _, row in read_json_lines(out / "history.jsonl") if "loss" in row]


def test_targets_by_hand():
    # The means are (3, 4) and (0, 0), so the direction is (0.6, 0.8).
    states = torch.tensor([[2.0, 4.0], [4.0, 4.0], [1.0, -1.0], [-1.0, 1.0], [5.0, 0.0]])
    labels = [Label.TOXIC, Label.TOXIC, Label.BENIGN, Label.BENIGN, Label.SEEMINGLY_TOXIC]
    found = targets(states, labels, 0.5)
    # Along it lie 4.4, 5.6, -0.2, 0.2 and 3: half of that is added for the toxic and taken from the others.
    moved = torch.tensor([2.2, 2.8, 0.1, -0.1, -1.5])[:, None] * torch.tensor([0.6, 0.8])
    torch.testing.assert_close(found, states + moved)


def test_with_an_alpha_of_one_nothing_is_left_along_the_direction():
    torch.manual_seed(0)
    states, labels = torch.randn(9, 7), [Label.TOXIC, Label.BENIGN, Label.SEEMINGLY_TOXIC] * 3
    direction = states[0::3].mean(0) - states[1::3].mean(0)
    along = targets(states, labels, 1.0) @ direction
    torch.testing.assert_close(along[0::3], 2 * (states[0::3] @ direction))
    torch.testing.assert_close(along[1::3], torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(along[2::3], torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)], ids=["full", "lora"])
def test_one_layer_learns_and_all_others_stay(model_folder, tmp_path, lora):
    base, out = model_folder(), tmp_path / "out"
    spec = PolicySpec.of(ModelSpec(model=str(base)))
    cost = project(spec, PROMPTS, ProjectionOptions(**OPTIONS | {"rounds": 1}, lora=lora), out)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model/model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all(name.startswith("model.layers.2.") for name in changed)
    assert (cost.steps, len(losses(out)), cost.notes["layer"]) == (3, 3, 3)
    first, last = at_layer(spec, 3), at_layer(PolicySpec.read(out), 3)
    wanted = targets(first, [p.label for p in PROMPTS], 0.5)
    cosines = [torch.nn.functional.cosine_similarity(states, wanted).mean() for states in (first, last)]
    assert cosines[0] < cosines[1] < 1


def test_the_loss_is_one_minus_the_cosine_with_the_targets(model_folder, tmp_path):
    spec = PolicySpec.of(ModelSpec(model=str(model_folder())))
    options = ProjectionOptions(**OPTIONS | {"batch_size": len(PROMPTS), "rounds": 1, "learning_rate": 1e-9})
    project(spec, PROMPTS, options, tmp_path / "out")
    states = at_layer(spec, 3).double()
    toxic = torch.tensor([p.label is Label.TOXIC for p in PROMPTS])
    benign = torch.tensor([p.label is Label.BENIGN for p in PROMPTS])
    r = states[toxic].mean(0) - states[benign].mean(0)
    expected = []
    for state, bad in zip(states, toxic, strict=True):
        turned = state + (0.5 if bad else -0.5) * (state @ r) / (r @ r) * r
        expected.append(1 - float(state @ turned / (state.norm() * turned.norm())))
    (found,) = losses(tmp_path / "out")
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_an_interrupted_stage_ends_with_the_same_bytes(model_folder, tmp_path, monkeypatch):
    spec = PolicySpec.of(ModelSpec(model=str(model_folder())))
    options = ProjectionOptions(**OPTIONS | {"rounds": 3}, checkpoint_every=1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    project(spec, PROMPTS, options, whole)
    with stopped_at(5, projection_trainer, "ProjectionTrainer", monkeypatch):  # in the second round
        project(spec, PROMPTS, options, broken)
    assert [p.name for p in (broken / "checkpoints").iterdir()] == ["checkpoint-3"]
    project(spec, PROMPTS, options, broken)
    for name in ("model/model.safetensors", "history.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_auto_takes_the_clearest_layer_of_the_middle_half(model_folder, tmp_path):
    spec = PolicySpec.of(ModelSpec(model=str(model_folder())))
    cost = project(spec, PROMPTS, ProjectionOptions(**OPTIONS | {"layer": "auto"}), tmp_path / "out")
    poles = PROMPTS.with_label(Label.TOXIC, Label.BENIGN)
    found = separability(layer_states(Policy.load(spec), poles), poles)
    best = max((2, 3), key=lambda layer: found[layer - 1].silhouette)
    assert cost.notes["layer"] == read_json(tmp_path / "out/layer.json")["layer"] == best
    assert "highest silhouette" in cost.notes["layer_reason"]


@pytest.mark.parametrize(("depth", "best"), [(1, 1), (3, 3), (4, 3), (5, 4), (30, 23)])
def test_the_middle_half(depth, best):
    rising = [LayerSeparation(n, 0, 0, 0, None, None, None, n / 100) for n in range(1, depth + 1)]
    assert clearest_middle(rising).layer == best


def test_mistakes(model_folder, tmp_path):
    spec = PolicySpec.of(ModelSpec(model=str(model_folder())))
    with pytest.raises(TrainingError, match="The direction needs toxic and benign prompts; it has 5 toxic"):
        project(spec, PROMPTS.with_label(Label.TOXIC), ProjectionOptions(**OPTIONS), tmp_path / "out")
    with pytest.raises(ModelError, match="out of range"):
        project(spec, PROMPTS, ProjectionOptions(**OPTIONS | {"layer": 9}), tmp_path / "out")
