"""Stage 1 on tiny models: what it changes, what it leaves alone, and that it goes on where it was."""

import json
from filecmp import cmp

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from discernment.diagnosis.separability import layer_states, recommend_layer, separability
from discernment.errors import DataError, ModelError, TrainingError
from discernment.files import read_json, read_json_lines, write_json
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import Label, PromptSet
from discernment.training import contrastive_trainer as trainer_module
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.last_steps import LastSteps
from discernment.training.losses import retention
from discernment.training.options import LoraOptions
from stopping import stopped_at
from tiny import make_benign, make_prompts

OPTIONS = {
    "layer": 2,
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "evaluate_every": 2,
    "stopping": "none",
}


def weights(folder):
    return load_file(folder / "model.safetensors")


def history(out):
    return [row for _, row in read_json_lines(out / "history.jsonl")]


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)], ids=["full", "lora"])
def test_layers_up_to_l_learn_and_the_tail_stays_byte_for_byte(model_folder, tmp_path, lora):
    base = model_folder("qwen2", tie_word_embeddings=True)
    out = tmp_path / "out"
    cost = refine(
        ModelSpec(model=str(base)),
        make_prompts(),
        RefineOptions(**OPTIONS, lora=lora),
        out,
        validation=make_prompts(pairs=6, sources=2),
    )
    before, after = weights(base), weights(out / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert changed
    assert all(name.startswith(("model.layers.0.", "model.layers.1.")) for name in changed)
    assert any(name.startswith("model.layers.2.") for name in before)
    assert cost.steps == 6
    assert cost.tokens > 0
    rows = history(out)
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4, 5, 6]
    looks = [r for r in rows if "cross_similarity" in r]
    assert [r["step"] for r in looks] == [0, 2, 4, 6]
    assert looks[-1]["cross_similarity"] < looks[0]["cross_similarity"]
    assert all(0 <= r["probe_auroc"] <= 1 for r in looks)
    assert not (out / "checkpoints").exists()


def test_the_best_step_is_kept_and_the_stage_stops_early(model_folder, tmp_path):
    base = model_folder()
    options = RefineOptions(
        **{**OPTIONS, "steps": 40, "learning_rate": 3e-2, "stopping": "probe_auroc", "patience": 1}
    )
    out = tmp_path / "out"
    cost = refine(
        ModelSpec(model=str(base)), make_prompts(), options, out, validation=make_prompts(6, sources=2)
    )
    looks = {r["step"]: r["probe_auroc"] for r in history(out) if "probe_auroc" in r and r["step"] > 0}
    assert cost.steps < 40
    assert looks[cost.notes["kept_step"]] == max(looks.values())


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stopping": "probe_auroc"},
        {"loss": {"memory": 16}},
        {"loss": {"worst_sources": 0.5}},
        {"average_last": 4},
    ],
    ids=str,
)
def test_an_interrupted_stage_ends_with_the_same_bytes(model_folder, tmp_path, monkeypatch, more):
    spec = ModelSpec(model=str(model_folder()))
    options = RefineOptions(**{**OPTIONS, "patience": 2, **more}, checkpoint_every=2)
    validation = make_prompts(6, sources=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    refine(spec, make_prompts(), options, whole, validation)

    with stopped_at(5, trainer_module, "ContrastiveTrainer", monkeypatch):
        refine(spec, make_prompts(), options, broken, validation)
    assert not (broken / "model").exists()
    # The newest checkpoint is cut off as well: the one before it must be taken.
    torn = broken / "checkpoints" / "checkpoint-4"
    (torn / "trainer_state.json").unlink()
    refine(spec, make_prompts(), options, broken, validation)
    assert cmp(whole / "model/model.safetensors", broken / "model/model.safetensors", shallow=False)
    assert [r["step"] for r in history(whole) if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert history(broken) == history(whole)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, keep="both")], ids=["full", "lora"])
def test_the_mean_over_the_last_steps_is_left(model_folder, tmp_path, lora):
    spec = ModelSpec(model=str(model_folder("qwen2", tie_word_embeddings=True)))

    def left(steps, **more):
        # A constant rate and no warm-up, so that fewer steps are the same steps.
        options = {**OPTIONS, "steps": steps, "warmup": 0, "lora": lora, **more}
        out = tmp_path / f"{steps}-{bool(more)}"
        refine(spec, make_prompts(), RefineOptions(**options), out)
        file = "adapter_model" if lora else "model"
        return load_file(out / ("adapter" if lora else "model") / f"{file}.safetensors")

    each = [left(steps) for steps in (4, 5, 6)]
    mean = left(6, average_last=3)
    assert mean.keys() == each[0].keys()
    moved = [name for name in mean if not torch.equal(each[0][name], each[2][name])]
    assert moved
    for name, weights in mean.items():
        torch.testing.assert_close(
            weights, torch.stack([other[name] for other in each]).mean(0), rtol=1e-5, atol=1e-7
        )
    tails = [name for name in mean if name.startswith("model.layers.2.")]
    assert lora or all(mean[name].equal(each[0][name]) for name in tails)


def test_a_mean_of_many_in_half_precision_follows_the_weights():
    layer = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    last, values = LastSteps(layer, 200), torch.linspace(1, 3, 200).bfloat16()
    for count, value in enumerate(values, 1):
        nn.init.constant_(layer.weight, value)
        last.take(count)
    last.put()
    assert layer.weight.tolist()[0] == pytest.approx([float(values.float().mean())] * 2, rel=2**-8)


def test_an_average_goes_up_to_the_last_step():
    with pytest.raises(ValidationError, match="`average_last` goes up to the last step"):
        RefineOptions(layer=2, average_last=5)
    with pytest.raises(ValidationError, match="are more steps than the 4 of `steps`"):
        RefineOptions(layer=2, steps=4, average_last=5, stopping="none")


def test_gradient_checkpointing_changes_nothing_but_memory(model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder()))
    folders = []
    for checkpointing in (False, True):
        folders.append(tmp_path / f"{checkpointing}")
        refine(
            spec, make_prompts(), RefineOptions(**OPTIONS, gradient_checkpointing=checkpointing), folders[-1]
        )
    plain, recomputed = (weights(folder / "model") for folder in folders)
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value, rtol=1e-3, atol=1e-4)
    assert [r["loss"] for r in history(folders[1])] == pytest.approx(
        [r["loss"] for r in history(folders[0])], rel=1e-3
    )


def test_retention_keeps_benign_prompts_where_they_were(model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder()))
    drift = {}
    for weight in (1e-6, 100.0):
        out = tmp_path / f"r{weight}"
        options = RefineOptions(**{**OPTIONS, "steps": 12, "retention": weight, "retention_batch": 4})
        refine(spec, make_prompts(), options, out, retained=make_benign())
        drift[weight] = history(out)[-1]["retention"]
    assert drift[1e-6] > 0
    assert drift[100.0] < 0.5 * drift[1e-6]


def test_the_parts_of_the_loss_are_those_of_the_whole_step(model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder()))
    options = RefineOptions(
        **{**OPTIONS, "steps": 3, "retention": 2.0, "retention_batch": 4, "gradient_accumulation": 2}
    )
    refine(spec, make_prompts(), options, tmp_path / "out", retained=make_benign(8))
    rows = [row for row in history(tmp_path / "out") if "loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrast"] + 2.0 * row["retention"], rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 4, 5])
@pytest.mark.parametrize("retained", [None, make_benign(9)], ids=["contrast", "retained"])
def test_each_step_has_all_its_batches_and_their_tokens_are_counted(
    accumulation, retained, model_folder, tmp_path, monkeypatch
):
    batches = []
    compute = trainer_module.ContrastiveTrainer.compute_loss

    def counted(self, model, inputs, *args, **kwargs):
        batches.append(int(inputs["attention_mask"].sum()))
        return compute(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer_module.ContrastiveTrainer, "compute_loss", counted)
    # Three batches see all 24 prompts once.
    kept = {"retention": 1.0, "retention_batch": 3} if retained else {}
    options = RefineOptions(**{**OPTIONS, "steps": 5, "gradient_accumulation": accumulation, **kept})
    spec = ModelSpec(model=str(model_folder()))
    cost = refine(spec, make_prompts(12), options, tmp_path / "out", retained=retained)
    assert (cost.steps, len(batches)) == (5, 5 * accumulation)
    assert cost.tokens == sum(batches)


def test_what_would_do_nothing_is_refused(model_folder, tmp_path):
    spec, prompts = ModelSpec(model=str(model_folder())), make_prompts()
    with pytest.raises(TrainingError, match="Retained prompts do nothing without `retention`"):
        refine(spec, prompts, RefineOptions(**OPTIONS), tmp_path / "out", retained=make_benign())
    weighted = RefineOptions(**OPTIONS, label_weights={Label.BENIGN: 2})
    with pytest.raises(
        TrainingError, match="`label_weights` names benign, and the contrast has no such prompts"
    ):
        refine(spec, prompts, weighted, tmp_path / "out")


def test_retention_is_the_relative_squared_movement():
    reference = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [9.0, 9.0]]])
    moved = reference + torch.tensor([[[0.0, 5.0], [0.0, 1.0]], [[1.0, 0.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1], [1, 0]])
    # 25/25, 1/4 and 1/1; the padded token does not count
    assert retention(moved, reference, mask).item() == pytest.approx((1 + 0.25 + 1) / 3)


class StopAtOnce(trainer_module.ContrastiveTrainer):
    def train(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_auto_measures_the_layer_and_notes_why(model_folder, tmp_path):
    base = model_folder()
    options = RefineOptions(**{**OPTIONS, "layer": "auto", "steps": 1})
    validation = make_prompts(6, sources=2)
    policy = Policy.load(str(base))
    found = {
        name: recommend_layer(separability(layer_states(policy, prompts), prompts))
        for name, prompts in {"validation": validation, "contrast": make_prompts()}.items()
    }
    assert found["validation"] != found["contrast"]
    for name, given in (("validation", validation), ("contrast", None)):
        out = tmp_path / name
        cost = refine(ModelSpec(model=str(base)), make_prompts(), options, out, validation=given)
        layer, reason = found[name]
        assert cost.notes == {"layer": layer, "layer_reason": reason, "kept_step": 1}
        assert read_json(out / "layer.json") == {"layer": layer, "reason": reason}
        before, after = weights(base), weights(out / "model")
        changed = {n.split(".")[2] for n in before if not before[n].equal(after[n])}
        assert changed == {str(n) for n in range(layer)}


def test_an_interrupted_stage_keeps_the_layer_that_it_found(model_folder, tmp_path, monkeypatch):
    spec = ModelSpec(model=str(model_folder()))
    options = RefineOptions(**{**OPTIONS, "layer": "auto", "steps": 1})
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "ContrastiveTrainer", StopAtOnce)
        with pytest.raises(KeyboardInterrupt):
            refine(spec, make_prompts(), options, tmp_path)
    found = read_json(tmp_path / "layer.json")
    # Another one than would be found again, to see that it is not looked for again.
    kept = {"layer": found["layer"] % 4 + 1, "reason": "kept"}
    write_json(tmp_path / "layer.json", kept)
    notes = refine(spec, make_prompts(), options, tmp_path).notes
    assert (notes["layer"], notes["layer_reason"]) == (kept["layer"], "kept")


def test_a_named_layer_is_not_measured(model_folder, tmp_path):
    options = RefineOptions(**{**OPTIONS, "steps": 1})
    cost = refine(ModelSpec(model=str(model_folder())), make_prompts(), options, tmp_path)
    assert cost.notes == {"layer": 2, "kept_step": 1}
    assert not (tmp_path / "layer.json").exists()


@pytest.mark.parametrize("layer", [0, -1, 1.5, True, "2", "Auto", "", None, [1]])
def test_what_is_no_layer_is_told_in_one_sentence(layer):
    with pytest.raises(ValidationError) as caught:
        RefineOptions(layer=layer)
    (problem,) = caught.value.errors()
    assert problem["loc"] == ("layer",)
    assert problem["msg"] == "Value error, Input should be the number of a layer, counted from 1, or `auto`"


def test_mistakes_are_told(model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder()))
    with pytest.raises(ModelError, match="Layer 9 is out of range"):
        refine(spec, make_prompts(), RefineOptions(**{**OPTIONS, "layer": 9}), tmp_path / "a")
    with pytest.raises(DataError, match="benign needs two toxic prompts and two others at least"):
        refine(spec, make_benign(), RefineOptions(**{**OPTIONS, "layer": "auto"}), tmp_path / "g")
    with pytest.raises(TrainingError, match="needs prompts of two labels"):
        toxic = make_prompts().with_label(Label.TOXIC)
        refine(spec, toxic, RefineOptions(**OPTIONS), tmp_path / "b")
    with pytest.raises(TrainingError, match="retention term needs benign prompts"):
        refine(spec, make_prompts(), RefineOptions(**OPTIONS, retention=1.0), tmp_path / "c")
    with pytest.raises(TrainingError, match="contrast needs toxic prompts"):
        two = make_prompts().with_label(Label.SEEMINGLY_TOXIC)
        both = PromptSet.concatenate([two, make_benign()], "both")
        refine(spec, both, RefineOptions(**OPTIONS), tmp_path / "e")
    one_source = make_prompts(6, sources=1)
    with pytest.raises(TrainingError, match="one of the labels come from a single source"):
        options = RefineOptions(**{**OPTIONS, "stopping": "probe_auroc"})
        refine(spec, make_prompts(), options, tmp_path / "f", validation=one_source)
    with pytest.raises(TrainingError, match="validation prompts need toxic and other ones"):
        refine(spec, make_prompts(), RefineOptions(**OPTIONS), tmp_path / "d", validation=make_benign())


def test_a_diverging_stage_stops(model_folder, tmp_path):
    folder = model_folder()
    state = weights(folder)
    state["model.layers.0.mlp.down_proj.weight"][:] = float("nan")
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"is nan at step 1; lower the learning rate"):
        refine(ModelSpec(model=str(folder)), make_prompts(), RefineOptions(**OPTIONS), tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())
