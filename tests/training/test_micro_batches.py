"""A batch that is looked at some rows at a time: the gradients of the whole one, in the memory of a small one."""

import pytest
import torch
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile

from discernment.files import read_json_lines
from discernment.models.batch import pad
from discernment.models.chat import ChatFormat
from discernment.models.cut import CutModel
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.prompts import PromptSet
from discernment.training import micro_batches
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.contrastive_trainer import make_trainer
from discernment.training.losses import ContrastiveLoss, pool
from discernment.training.micro_batches import in_length_groups, in_micro_batches
from discernment.training.options import LossOptions
from tiny import make_benign, make_model, make_prompts

OPTIONS = {
    "layer": 2,
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "evaluate_every": 2,
    "stopping": "none",
}
DROPOUT = {
    "llama": {"attention_dropout": 0.4},
    "gpt_neox": {"attention_dropout": 0.3, "hidden_dropout": 0.3},
}
LENGTHS = (9, 4, 12, 7, 7, 11, 5)


def gradients(cut):
    found = {name: weights.grad for name, weights in cut.named_parameters() if weights.grad is not None}
    cut.zero_grad()
    assert len(found) > 5
    return found


@pytest.mark.parametrize("family", DROPOUT)
@pytest.mark.parametrize("held", [0, 1])
@pytest.mark.parametrize("retention", [0.0, 0.7])
def test_gradients_are_those_of_the_batch_at_once(family, held, retention, tokenizer, tmp_path):
    found, losses = [], []
    for size in (None, 3):
        policy = Policy(make_model(family, len(tokenizer)), ChatFormat(tokenizer), "tiny")
        options = RefineOptions(
            **{**OPTIONS, "first_layer": held, "retention": retention, "steps": 9}, micro_batch_size=size
        )
        spec, benign = ModelSpec(model="tiny", device="cpu"), make_benign()
        with CutModel(policy.model, 2, held=held) as cut:
            trainer = make_trainer(spec, cut, policy, make_prompts(), options, tmp_path, None, benign)
            batch = next(iter(trainer.get_train_dataloader()))
            assert ("held" in batch, "references" in batch) == (held > 0, retention > 0)
            assert len(batch["labels"]) % 3 != 0
            loss = trainer.compute_loss(cut.train(), batch)
            loss.backward()
            losses.append(loss.item())
            found.append(gradients(cut))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in found[0].values()) > 1e-3


@pytest.mark.parametrize("family", DROPOUT)
def test_dropout_is_the_same_when_rows_are_run_again(family):
    """Against one graph over all rows, run three at a time, longest first, with every activation held."""
    torch.manual_seed(1)
    rows = [torch.randint(3, 400, (length,)).tolist() for length in LENGTHS]
    batch, labels = pad(rows, 0, "right")._asdict(), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    contrast = ContrastiveLoss(LossOptions())
    order = sorted(range(len(rows)), key=lambda row: (-LENGTHS[row], row))

    def states(rows):
        return pool(cut(**rows), rows["attention_mask"], "last")

    def by_graph():
        parts = [order[start : start + 3] for start in range(0, len(rows), 3)]
        assert [len(part) for part in parts] == [3, 3, 1]
        found = [states(pad([rows[row] for row in part], 0, "right")._asdict()) for part in parts]
        return contrast(torch.cat(found), labels[order])

    def by_parts():
        return contrast(in_micro_batches(cut, batch, 3, states), labels)

    with CutModel(make_model(family, **DROPOUT[family]), 3) as cut:
        states(batch)  # chooses how batches are run
        cut.train()
        found = {}
        for name, seed, loss in (("graph", 5, by_graph), ("parts", 5, by_parts), ("other", 6, by_graph)):
            torch.manual_seed(seed)
            loss().backward()
            found[name] = gradients(cut)
    apart = 0.0
    for name, gradient in found["graph"].items():
        torch.testing.assert_close(found["parts"][name], gradient, rtol=1e-5, atol=1e-5)
        apart = max(apart, float((found["other"][name] - gradient).abs().max()))
    assert apart > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("held", [0, 1])
def test_rows_of_unlike_length_are_run_in_groups_with_the_same_gradients(family, held):
    lengths = (40, 5, 6, 38, 7, 5, 12, 6, 11)
    torch.manual_seed(1)
    rows = [torch.randint(3, 390, (length,)).tolist() for length in lengths]
    batch, labels = pad(rows, 0, "right")._asdict(), torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 1])
    contrast, seen = ContrastiveLoss(LossOptions()), []

    def states(rows):
        seen.append(tuple(rows["input_ids"].shape))
        return pool(cut(**rows), rows["attention_mask"], "last")

    with CutModel(make_model(family), 3, held=held) as cut:
        if held and cut.takes_states(0):
            with torch.no_grad(), CutModel(make_model(family), held) as first:
                batch["held"] = first(batch["input_ids"], batch["attention_mask"])
        states(batch)  # chooses how batches are run
        contrast(states(batch), labels).backward()
        at_once = gradients(cut)
        seen.clear()
        contrast(in_length_groups(batch, states), labels).backward()
        in_groups = gradients(cut)
    assert seen == [(3, 40), (3, 11), (3, 6)]
    assert at_once.keys() == in_groups.keys()
    for name, gradient in at_once.items():
        torch.testing.assert_close(in_groups[name], gradient, rtol=1e-4, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in at_once.values()) > 1e-3


def test_rows_of_like_length_are_run_at_once():
    batch = pad([[5] * length for length in LENGTHS], 0, "right")._asdict()
    seen = []

    def view(rows):
        seen.append(rows)
        return rows["input_ids"].sum(1)

    assert in_length_groups(batch, view).tolist() == [5 * length for length in LENGTHS]
    assert len(seen) == 1
    assert seen[0] is batch


def test_a_stage_with_one_long_prompt_learns_the_same_in_groups(model_folder, tmp_path, monkeypatch):
    prompts = make_prompts()
    long = prompts[0].model_copy(update={"text": prompts[0].text * 6})
    unlike = PromptSet([long, *prompts[1:]], prompts.provenance)
    spec, calls = ModelSpec(model=str(model_folder())), []
    for name, worth in (("groups", 1.5), ("once", 1e9)):
        monkeypatch.setattr(micro_batches, "WORTH_PARTING", worth)
        calls.append(refine(spec, unlike, RefineOptions(**OPTIONS), tmp_path / name).tokens)
    weights = [load_file(tmp_path / name / "model/model.safetensors") for name in ("groups", "once")]
    for key, value in weights[1].items():
        torch.testing.assert_close(weights[0][key], value, rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(weights[0][key], value) for key, value in weights[1].items())  # it was parted


def test_a_way_that_is_found_wrong_on_the_way_is_wrong_for_all_rows():
    """A part that must be run otherwise than those before it: all are run again so, and the way back fits."""
    rows = [[5] * length for length in LENGTHS]
    batch = pad(rows, 0, "right")._asdict()
    with CutModel(make_model("llama"), 3) as cut:

        def states(rows):
            found = pool(cut(**rows), rows["attention_mask"], "last")
            if len(rows["input_ids"]) == 1:
                cut._way[False] = 2
            return found

        cut(**batch)
        assert cut.ways[False] < 2
        found = in_micro_batches(cut, batch, 3, states)
        found.square().sum().backward()
        parts = gradients(cut)
        pool(cut(**batch), batch["attention_mask"], "last").square().sum().backward()
        for name, gradient in gradients(cut).items():
            torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=1e-4)


def peak(rows, size):
    """Most bytes that torch's allocator had given out at once in one step, of those that the step asked for."""
    torch.manual_seed(0)
    ids, labels = torch.randint(3, 400, (rows, 24)), torch.arange(rows) % 2
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    contrast = ContrastiveLoss(LossOptions())
    with CutModel(make_model("llama", hidden_size=64, intermediate_size=256), 3) as cut:

        def states(rows):
            return pool(cut(**rows), rows["attention_mask"], "last")

        cut(**{name: column[:4] for name, column in batch.items()})
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            found = states(batch) if size is None else in_micro_batches(cut, batch, size, states)
            contrast(found, labels).backward()
    now = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert most > 1 << 20
    return most


def test_memory_hardly_grows_with_the_batch():
    large, small = peak(256, 16), peak(32, 16)
    assert large < 1.3 * small
    assert peak(256, None) > 10 * small


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stage_comes_to_the_same(dtype, model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DISCERNMENT_DTYPE", dtype)  # the weights stay in float32, and training computes in it
    spec = ModelSpec(model=str(model_folder()), device="cpu")
    for size in (None, 3):
        refine(
            spec,
            make_prompts(),
            RefineOptions(**{**OPTIONS, "gradient_accumulation": 2}, micro_batch_size=size),
            tmp_path / str(size),
            make_prompts(6, sources=2),
        )
    exact = dtype == "float32"
    logs = [[row for _, row in read_json_lines(tmp_path / name / "history.jsonl")] for name in ("None", "3")]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in logs]
    assert len(losses[0]) == OPTIONS["steps"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if exact else 5e-2)
    if exact:
        plain, parts = (load_file(tmp_path / name / "model/model.safetensors") for name in ("None", "3"))
        for name, value in plain.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4)
