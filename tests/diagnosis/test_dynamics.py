"""The looks at the probe prompts: when, at which prompts, with what result, and that training does not notice."""

import itertools
import random
from filecmp import cmp
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discernment.diagnosis.dynamics import DynamicsOptions, Probes, look_steps
from discernment.diagnosis.looks import undisturbed
from discernment.errors import DataError
from discernment.files import read_json_lines
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, PromptSet
from discernment.training import contrastive_trainer as refinement
from discernment.training import supervised_trainer
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.options import LoraOptions
from discernment.training.supervised import AlignOptions, align
from stopping import stopped_at
from tiny import make_benign, make_model, make_prompts

PROBES = PromptSet.concatenate([make_prompts(5), make_benign(4)], "probes")
WATCH = DynamicsOptions(per_group=2, rejection_per_group=3, k=3)
GROUPS = ["toxic", "seemingly_toxic", "benign"]


def rows_of(out):
    """The looks without what they cost."""
    return [
        {key: value for key, value in row.items() if key != "cost"}
        for _, row in read_json_lines(out / "dynamics.jsonl")
    ]


def run_refine(spec, out, probes=None, **options):
    options = {"layer": 2, "steps": 4, "batch_size": 8, "learning_rate": 3e-3, "stopping": "none", **options}
    return refine(spec, make_prompts(6), RefineOptions(**options), out, probes=probes, dynamics=WATCH)


def run_align(spec, out, probes=None, **options):
    options = {"batch_size": 4, "learning_rate": 3e-3, "epochs": 2.0, **options}
    return align(spec, make_prompts(4), AlignOptions(**options), out, probes=probes, dynamics=WATCH)


STAGES = {"refine": run_refine, "align": run_align}


@pytest.fixture(params=STAGES)
def stage(request):
    return STAGES[request.param]


@pytest.mark.parametrize(
    ("total", "most", "steps"),
    [
        (1, 8, [0, 1]),
        (2, 8, [0, 1, 2]),
        (8, 8, [0, 1, 2, 4, 8]),
        (20, 8, [0, 1, 2, 4, 8, 16, 20]),
        (64, 8, [0, 1, 2, 4, 8, 16, 32, 64]),
        (80, 8, [0, 1, 2, 4, 9, 19, 39, 80]),  # powers of the sixth root of 80, 2.0758
        (1000, 5, [0, 1, 10, 100, 1000]),
        (1000, 3, [0, 1, 1000]),
    ],
)
def test_looks_are_spread_over_the_logarithm_of_the_steps(total, most, steps):
    assert look_steps(total, most) == steps


@given(st.integers(1, 10**6), st.integers(3, 40))
def test_looks_begin_at_0_and_end_with_the_stage(total, most):
    steps = look_steps(total, most)
    assert (steps[0], steps[-1]) == (0, total)
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert len(steps) <= most


def test_probes_keep_matched_pairs_together():
    lonely = [p.model_copy(update={"id": f"x{n}", "partner": None}) for n, p in enumerate(make_prompts(4))]
    prompts = PromptSet([*lonely, *make_prompts(5), *make_benign(6)], PROBES.provenance)
    chosen = Probes.choose(prompts, DynamicsOptions(per_group=3, rejection_per_group=7))
    toxic, partners, benign = chosen.kernel[:3], chosen.kernel[3:6], chosen.kernel[6:]
    assert [p.label for p in chosen.kernel] == [label for label in Label for _ in range(3)]
    assert [p.partner for p in toxic] == [p.id for p in partners]
    assert len({p.id for p in chosen.kernel}) == 9
    assert {p.label for p in benign} == {Label.BENIGN}
    # all 5 pairs, then 2 of those without a partner
    rejection = [p for p in chosen.rejection if p.label is Label.TOXIC]
    assert rejection[:3] == list(toxic)
    assert [p.partner is None for p in rejection] == [False] * 5 + [True] * 2
    assert chosen == Probes.choose(prompts, DynamicsOptions(per_group=3, rejection_per_group=7))
    others = [Probes.choose(prompts, DynamicsOptions(per_group=3), seed).kernel for seed in range(4)]
    assert len(set(others)) > 1


def test_probes_leave_absent_groups_out():
    toxic = make_prompts(3).with_label(Label.TOXIC)  # whose partners are not there
    assert len(Probes.choose(toxic, WATCH).rejection) == 3
    two = PromptSet.concatenate([toxic, make_benign(1)], "two")
    assert [p.label for p in Probes.choose(two, WATCH).kernel] == [Label.TOXIC, Label.TOXIC, Label.BENIGN]


@pytest.mark.parametrize(
    "prompts", [make_benign(4), make_prompts(1).with_label(Label.TOXIC)], ids=["no toxic", "one prompt"]
)
def test_probes_that_are_too_few_are_told(prompts, model_folder, tmp_path, stage):
    message = "need a toxic one and at least one other; it has [14] (benign|toxic)"
    with pytest.raises(DataError, match=message):
        Probes.choose(prompts, WATCH)
    with pytest.raises(DataError, match=message):
        stage(ModelSpec(model=str(model_folder())), tmp_path / "out", prompts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora": LoraOptions(rank=2, dropout=0.2)},
        pytest.param({"gradient_checkpointing": True, "lora": LoraOptions(rank=2)}, marks=pytest.mark.slow),
    ],
    ids=["full", "lora with dropout", "checkpointing"],
)
@pytest.mark.thinned(2)
def test_training_is_the_same_with_and_without_looks(stage, options, model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder()))
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    assert stage(spec, plain, **options).notes.get("look_seconds") is None
    cost = stage(spec, watched, PROBES, **options)
    assert cmp(plain / "model/model.safetensors", watched / "model/model.safetensors", shallow=False)
    assert (plain / "history.jsonl").read_bytes() == (watched / "history.jsonl").read_bytes()
    assert not (plain / "dynamics.jsonl").exists()

    rows = rows_of(watched)
    assert [row["step"] for row in rows] == [0, 1, 2, 4]
    for row in rows:
        assert [*row["rejection"]] == [*row["rejection_by_prompt"]] == GROUPS
        assert [len(row["rejection_by_prompt"][group]) for group in GROUPS] == [3, 3, 3]
        for kind in ("row_normalised", "symmetric"):
            assert [*row[kind]] == GROUPS
            assert all([*row[kind][group]] == GROUPS for group in GROUPS)
        assert row["unscored"] == {}
    costs = [row["cost"] for _, row in read_json_lines(watched / "dynamics.jsonl")]
    looks = 0.0
    for c in costs:  # measured seconds: only how they hang together is known beforehand
        looks += c["seconds"]
        assert c["share"] == pytest.approx(looks / (looks + c["training_seconds"]), abs=0.02)
    assert [c["training_seconds"] for c in costs] == sorted(c["training_seconds"] for c in costs)
    assert cost.notes["look_seconds"] == pytest.approx(sum(c["seconds"] for c in costs), abs=0.02)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=2)], ids=["full", "lora"])
@pytest.mark.thinned(3)
def test_a_row_is_what_the_model_on_disk_gives(stage, lora, model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder("qwen2")))
    out = tmp_path / "out"
    stage(spec, out, PROBES, lora=lora)
    first, *_, last = rows_of(out)
    assert first["rejection"] != last["rejection"]
    text = {p.id: p.text for p in PROBES}
    chosen = Probes.choose(PROBES, WATCH)
    for row, model in ((first, spec), (last, ModelSpec(model=str(out / "model")))):
        policy = Policy.load(model)
        for group, found in row["rejection_by_prompt"].items():
            expected = rejection_probability(policy, [text[key] for key in found])
            assert [*found.values()] == pytest.approx(expected, rel=1e-3)
            assert row["rejection"][group] == pytest.approx(sum(expected) / 3, rel=1e-3)
        if lora is not None:
            continue  # the model on disk has no adapters, whose parameters count as well
        prompts = [p.text for p in chosen.kernel]
        norms = gradient_kernel(policy, prompts, KernelOptions(rows="own", k=3)).norms
        for i, of in enumerate(GROUPS):
            for j, to in enumerate(GROUPS):
                pairs = [(a, b) for a in (2 * i, 2 * i + 1) for b in (2 * j, 2 * j + 1) if a != b]
                rowwise = [norms[a, b] / norms[a, a] for a, b in pairs]
                balanced = [norms[a, b] / (norms[a, a] * norms[b, b]) ** 0.5 for a, b in pairs]
                assert row["row_normalised"][of][to] == pytest.approx(sum(rowwise) / len(pairs), rel=1e-2)
                assert row["symmetric"][of][to] == pytest.approx(sum(balanced) / len(pairs), rel=1e-2)


def test_a_group_of_one_has_no_pairs_within(model_folder, tmp_path):
    probes = PromptSet.concatenate([make_prompts(2), make_benign(1)], "probes")
    run_align(ModelSpec(model=str(model_folder())), tmp_path / "out", probes, epochs=0.5)
    rows = rows_of(tmp_path / "out")
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        assert row["symmetric"]["benign"]["benign"] is None
        assert row["symmetric"]["benign"]["toxic"] == pytest.approx(row["symmetric"]["toxic"]["benign"])
        assert row["row_normalised"]["toxic"]["toxic"] > 0


@pytest.mark.parametrize(
    ("module", "trainer", "length"),
    [
        (refinement, "ContrastiveTrainer", {"steps": 6}),
        (supervised_trainer, "SupervisedTrainer", {"epochs": 3.0}),
    ],
    ids=STAGES,
)
def test_an_interrupted_stage_has_the_same_rows(module, trainer, length, model_folder, tmp_path, monkeypatch):
    spec = ModelSpec(model=str(model_folder()))
    stage = partial(run_refine if module is refinement else run_align, checkpoint_every=3, **length)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    stage(spec, whole, PROBES)

    # After the look at step 4, which lies beyond the checkpoint.
    with stopped_at(5, module, trainer, monkeypatch):
        stage(spec, broken, PROBES)
    assert [row["step"] for row in rows_of(broken)] == [0, 1, 2, 4]
    with (broken / "dynamics.jsonl").open("a") as handle:
        handle.write('{"step": 5, "reje')
    stage(spec, broken, PROBES)
    assert [row["step"] for row in rows_of(whole)] == [0, 1, 2, 4, 6]
    assert rows_of(broken) == rows_of(whole)
    costs = [row["cost"] for _, row in read_json_lines(broken / "dynamics.jsonl")]
    assert [c["training_seconds"] for c in costs] == sorted(c["training_seconds"] for c in costs)


def test_mixed_precision_is_left_out_of_the_looks(model_folder, tmp_path, monkeypatch):
    spec = ModelSpec(model=str(model_folder()))
    run_align(spec, tmp_path / "float32", PROBES)
    monkeypatch.setattr(supervised_trainer, "trains_mixed", lambda spec: True)
    run_align(spec, tmp_path / "mixed", PROBES)
    run_align(spec, tmp_path / "unwatched")
    assert rows_of(tmp_path / "mixed")[0] == rows_of(tmp_path / "float32")[0]
    weights = {
        name: (tmp_path / name / "model/model.safetensors").read_bytes()
        for name in ("float32", "mixed", "unwatched")
    }
    assert weights["mixed"] == weights["unwatched"] != weights["float32"]


def test_a_look_leaves_random_numbers_gradients_and_flags_alone():
    model = make_model("llama")
    model.train()
    model.model.layers[1].eval()
    frozen, trained = model.model.layers[0].mlp.up_proj.weight, model.model.norm.weight
    frozen.requires_grad_(False)
    trained.grad = torch.ones_like(trained)
    gradient = trained.grad

    def draw():
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def seed():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    seed()
    with pytest.raises(KeyboardInterrupt), undisturbed(model):
        draw()
        model.eval().requires_grad_(True)
        model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
        raise KeyboardInterrupt
    assert draw() == expected
    assert model.training
    assert not model.model.layers[1].mlp.training
    assert not frozen.requires_grad
    assert sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1
    assert trained.grad is gradient
    assert trained.grad.equal(torch.ones_like(trained))
    assert frozen.grad is model.lm_head.weight.grad is None
