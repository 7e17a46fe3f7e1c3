"""Training on pairs: the loss is that of the paper and of TRL, what moves, and that it goes on where it was."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import DPOConfig, DPOTrainer

from discernment.errors import TrainingError
from discernment.files import read_json_lines
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label
from discernment.training import preference_trainer
from discernment.training.options import LoraOptions
from discernment.training.pairs import Pair
from discernment.training.preference import PreferenceOptions, prefer
from discernment.training.preference_trainer import make_trainer
from said import NO, YES, script
from stopping import stopped_at
from tiny import make_prompts

TOXIC, SEEMINGLY = (make_prompts(5).with_label(label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))
OPTIONS = {"batch_size": 4, "learning_rate": 2e-3, "epochs": 3.0}
PAIRS = [Pair(p, YES, NO) for p in SEEMINGLY] + [Pair(p, NO, YES) for p in TOXIC]


def moved(model, seed=0):
    """Other weights than those of the reference, the same for a copy."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights.add_(0.02 * torch.randn_like(weights))


def log_probability(model, prompt, reply):
    """Of the reply's tokens alone, one by one, in float64."""
    logits = model(input_ids=torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + n - 1, token] for n, token in enumerate(reply))


def losses(folder, name="loss"):
    return [row[name] for _, row in read_json_lines(folder / "history.jsonl") if name in row]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_loss_and_gradient_are_those_of_the_paper_by_hand(model_folder, tmp_path, family):
    start = PolicySpec.of(ModelSpec(model=str(model_folder(family))))
    policy = Policy.load(start, training=True)
    reference = copy.deepcopy(policy.model).double().eval()
    trainer = make_trainer(start, policy, PAIRS[3:7], PreferenceOptions(beta=0.3), tmp_path)
    moved(trainer.model)
    trained = copy.deepcopy(reference)
    trained.load_state_dict(policy.model.state_dict())
    rows = trainer.train_dataset.to_list()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()

    terms = []
    for pair in PAIRS[3:7]:
        prompt, (y, z) = (
            policy.chat.encode(pair.prompt.text),
            [policy.chat.encode_reply(pair.prompt.text, reply) for reply in (pair.chosen, pair.rejected)],
        )
        with torch.no_grad():
            of_reference = log_probability(reference, prompt, y) - log_probability(reference, prompt, z)
        margin = log_probability(trained, prompt, y) - log_probability(trained, prompt, z) - of_reference
        terms.append(-torch.log(torch.sigmoid(0.3 * margin)))
    expected = sum(terms) / len(terms)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert float(loss.detach()) != pytest.approx(math.log(2), rel=1e-2)  # the two models differ
    by_hand = dict(trained.named_parameters())
    compared = 0
    for name, weights in policy.model.named_parameters():
        if (wanted := by_hand[name].grad) is not None and wanted.norm() > 1e-6:
            assert (weights.grad.double() - wanted).norm() < 1e-3 * wanted.norm(), name
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_the_loss_is_that_of_trl_on_the_same_conversations(model_folder, tokenizer, tmp_path, family):
    start = PolicySpec.of(ModelSpec(model=str(model_folder(family))))
    policy = Policy.load(start, training=True)
    plain, second = copy.deepcopy(policy.model), copy.deepcopy(policy.model)
    trainer = make_trainer(start, policy, PAIRS, PreferenceOptions(), tmp_path)
    said = [
        {
            "prompt": [{"role": "user", "content": pair.prompt.text}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in PAIRS
    ]
    settings = {"output_dir": str(tmp_path / "trl"), "report_to": "none", "use_cpu": True, "bf16": False}
    more = {"router_aux_loss_coef": 0.0} if family == "mixtral" else {}
    theirs = DPOTrainer(
        plain,
        second,
        args=DPOConfig(**settings, **more),
        train_dataset=Dataset.from_list(said),
        processing_class=copy.deepcopy(tokenizer),
    )
    rows, conversations = trainer.train_dataset.to_list(), theirs.train_dataset.to_list()
    for ours, other in zip(rows, conversations, strict=True):
        assert ours["prompt_ids"] == other["prompt_ids"]
        for column in ("chosen_ids", "rejected_ids"):  # their template ends with a line, which no model says
            assert other[column][: len(ours[column])] == ours[column]
            other[column] = ours[column]
    moved(trainer.model)
    moved(theirs.model)
    found = [
        float(each.compute_loss(each.model, each.data_collator(some)).detach())
        for each, some in ((trainer, rows), (theirs, conversations))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert abs(found[0] - math.log(2)) > 0.002


def spoken(tmp_path):
    """What the model and the base model said: a refusal of every other seemingly toxic prompt, and harmful replies."""
    own = script(tmp_path / "own", SEEMINGLY, NO, YES, NO, NO, NO)
    return own, script(tmp_path / "harmful", TOXIC, YES, YES, NO, YES, YES)


@pytest.fixture
def inputs(model_folder, tmp_path):
    own, harmful = spoken(tmp_path)
    return {
        "start": PolicySpec.of(ModelSpec(model=str(model_folder()))),
        "examples": TOXIC,
        "seemingly": SEEMINGLY,
        "refusals": own,
        "answers": None,
        "harmful": harmful,
    }


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, dropout=0.1)], ids=["full", "lora"])
def test_the_loss_falls_and_the_margin_grows(inputs, tmp_path, lora):
    options = PreferenceOptions(**OPTIONS | {"epochs": 8.0}, lora=lora)
    cost = prefer(**inputs, options=options, out=tmp_path / "out")
    found, margins = losses(tmp_path / "out"), losses(tmp_path / "out", "margin")
    assert len(found) == len(margins) == cost.steps == 16
    assert cost.notes["pairs"] == cost.notes["pairs_found"] == {"seemingly_toxic": 4, "toxic": 4}
    # Before the first step, the model is its own reference; with LoRA it is the model without the adapter.
    assert found[0] == pytest.approx(math.log(2), rel=1e-5)
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert found[-1] < 0.7 * found[0]
    assert margins[-1] > 0.3
    before, after = (Policy.load(spec) for spec in (inputs["start"], PolicySpec.read(tmp_path / "out")))
    for asked, rejected in ((SEEMINGLY[0], NO), (TOXIC[4], YES)):
        prompt = before.chat.encode(asked.text)
        replies = [before.chat.encode_reply(asked.text, r) for r in (asked.response, rejected)]
        with torch.no_grad():
            one, other = (
                log_probability(policy.model, prompt, replies[0])
                - log_probability(policy.model, prompt, replies[1])
                for policy in (before, after)
            )
        assert other > one


def test_an_adapter_is_kept_alone_and_nothing_else_moves(inputs, tmp_path):
    lora = LoraOptions(rank=4, keep="adapter")
    prefer(**inputs, options=PreferenceOptions(**OPTIONS, lora=lora), out=tmp_path / "out")
    left = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert left
    assert all(".lora_" in name and ".ref." not in name for name in left)
    assert any(weights.abs().max() > 0 for name, weights in left.items() if "lora_B" in name)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter", "history.jsonl", "policy.json"]
    assert PolicySpec.read(tmp_path / "out").model.model == inputs["start"].model.model


def test_layers_that_are_held_stay(inputs, tmp_path):
    prefer(**inputs, options=PreferenceOptions(**OPTIONS, frozen_layers=2), out=tmp_path / "out")
    base = load_file(f"{inputs['start'].model.model}/model.safetensors")
    after = load_file(tmp_path / "out/model/model.safetensors")
    changed = {name for name in base if not base[name].equal(after[name])}
    assert {name.split(".")[2] for name in changed if ".layers." in name} == {"2", "3"}
    assert not any("embed" in name or "lm_head" in name for name in changed)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)], ids=["full", "lora"])
def test_an_interrupted_stage_ends_with_the_same_bytes(inputs, tmp_path, monkeypatch, lora):
    options = PreferenceOptions(**OPTIONS, checkpoint_every=2, lora=lora, seed=3)
    whole, broken, other = tmp_path / "whole", tmp_path / "broken", tmp_path / "other"
    prefer(**inputs, options=options, out=whole)
    with stopped_at(5, preference_trainer, "PreferenceTrainer", monkeypatch):  # in the third epoch
        prefer(**inputs, options=options, out=broken)
    assert [p.name for p in sorted((broken / "checkpoints").glob("checkpoint-*"))] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    prefer(**inputs, options=options, out=broken)
    prefer(**inputs, options=options.model_copy(update={"seed": 4}), out=other)
    for name in ("model/model.safetensors", "history.jsonl"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes() != (other / name).read_bytes()
    assert (whole / "model/config.json").read_bytes() == (broken / "model/config.json").read_bytes()


@pytest.mark.parametrize("kind", ["hinge", "ipo"])
def test_other_losses_on_the_same_pairs(inputs, tmp_path, kind):
    prefer(**inputs, options=PreferenceOptions(**OPTIONS, loss_type=kind), out=tmp_path / "out")
    # Where the model is its reference: 1 - 0, and (0 - 1 / (2 beta))^2.
    assert losses(tmp_path / "out")[0] == pytest.approx({"hinge": 1.0, "ipo": 25.0}[kind], rel=1e-3)


def test_probes_are_watched_and_change_nothing(inputs, tmp_path):
    options = PreferenceOptions(**OPTIONS | {"epochs": 1.0})
    prefer(**inputs, options=options, out=tmp_path / "plain")
    prefer(**inputs, options=options, out=tmp_path / "watched", probes=make_prompts(4))
    assert (tmp_path / "watched/dynamics.jsonl").exists()
    weights = [(tmp_path / n / "model/model.safetensors").read_bytes() for n in ("plain", "watched")]
    assert weights[0] == weights[1]


def test_a_quantised_model_gets_an_adapter_beside_the_others(model_folder, tmp_path):
    """The reference is the model with the adapters that it came with."""
    own, harmful = spoken(tmp_path)
    folder = model_folder("llama", hidden_size=64, intermediate_size=128)
    start = PolicySpec.of(ModelSpec(model=str(folder), quantization="4bit"))
    common = {
        "examples": TOXIC,
        "seemingly": SEEMINGLY,
        "refusals": own,
        "answers": None,
        "harmful": harmful,
    }
    with pytest.raises(TrainingError, match="The model is quantised, so an adapter is all"):
        prefer(start, **common, options=PreferenceOptions(**OPTIONS), out=tmp_path / "none")
    lora = LoraOptions(rank=4, keep="adapter")
    options = PreferenceOptions(**OPTIONS | {"learning_rate": 1e-2, "batch_size": 8}, lora=lora)
    prefer(start, **common, options=options, out=tmp_path / "one")
    second = PolicySpec.read(tmp_path / "one")
    assert len(second.adapters) == 1
    prefer(second, **common, options=options, out=tmp_path / "two")
    found = [losses(tmp_path / name) for name in ("one", "two")]
    assert [each[0] for each in found] == [pytest.approx(math.log(2), rel=1e-4)] * 2
    assert all(each[-1] < each[0] for each in found)
    assert len(PolicySpec.read(tmp_path / "two").adapters) == 2


def test_seemingly_toxic_prompts_alone(inputs, tmp_path):
    given = {**inputs, "harmful": None}
    options = PreferenceOptions(**OPTIONS | {"epochs": 1.0}, containment=0)
    assert prefer(**given, options=options, out=tmp_path / "out").notes["pairs"] == {
        "seemingly_toxic": 4,
        "toxic": 0,
    }
    with pytest.raises(TrainingError, match=r"no toxic pair for `containment: 0.5`"):
        prefer(**given, options=PreferenceOptions(), out=tmp_path / "none")
