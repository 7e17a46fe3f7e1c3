"""Stage 2 on tiny models: what the loss sees, what is trained, and that it goes on where it was."""

from filecmp import cmp

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from discernment.diagnosis.separability import layer_states
from discernment.errors import TrainingError
from discernment.files import read_json_lines
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.training import supervised_trainer
from discernment.training.examples import encode_examples
from discernment.training.options import LoraOptions
from discernment.training.supervised import AlignOptions, align
from stopping import stopped_at
from tiny import LAYERS, make_benign, make_prompts

OPTIONS = {"batch_size": 4, "learning_rate": 3e-3, "epochs": 2.0}


def changed_between(base, out):
    before, after = load_file(base / "model.safetensors"), load_file(out / "model/model.safetensors")
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].equal(after[name])}


def test_the_loss_sees_the_reply_only(tokenizer):
    chat = ChatFormat(tokenizer)
    examples = make_benign(2)
    rows = encode_examples(examples, chat, 200)
    for row, example in zip(rows, examples, strict=True):
        reply = [t for t, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
        prompt = [t for t, m in zip(row["input_ids"], row["completion_mask"], strict=True) if not m]
        assert tokenizer.decode(reply) == f"{example.response}<|im_end|>"
        assert tokenizer.decode(prompt) == chat.render(example.text)


def test_a_long_reply_is_cut_and_a_long_prompt_is_an_error(tokenizer):
    chat = ChatFormat(tokenizer)
    length = len(chat.encode(make_benign(1)[0].text))
    assert len(encode_examples(make_benign(1), chat, length + 3)[0]["input_ids"]) == length + 3
    with pytest.raises(TrainingError, match="leaves no room for its reply; raise max_length"):
        encode_examples(make_benign(1), chat, length)
    with pytest.raises(TrainingError, match="has no response to train on"):
        encode_examples(make_prompts(2, responses=False), chat, 200)


def test_weights_in_float16_are_not_trained(model_folder, tmp_path):
    spec = ModelSpec(model=str(model_folder()), dtype="float16")
    with pytest.raises(TrainingError, match="Weights in float16 cannot be trained; leave `dtype` out"):
        align(spec, make_prompts(8), AlignOptions(**OPTIONS), tmp_path / "out")
    align(spec, make_prompts(8), AlignOptions(**OPTIONS, lora=LoraOptions(keep="adapter")), tmp_path / "lora")
    adapter = load_file(tmp_path / "lora/adapter/adapter_model.safetensors")
    assert {weights.dtype for weights in adapter.values()} == {torch.float32}
    assert all(weights.isfinite().all() and weights.abs().max() < 1 for weights in adapter.values())


def test_the_model_learns_the_replies(model_folder, tmp_path):
    base, out = model_folder(), tmp_path / "out"
    cost = align(
        ModelSpec(model=str(base)),
        make_prompts(8),
        AlignOptions(**{**OPTIONS, "epochs": 12.0}),
        out,
        make_benign(4),
    )
    rows = [row for _, row in read_json_lines(out / "history.jsonl")]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert len(losses) == cost.steps == 48
    assert losses[-1] < 0.5 * losses[0]
    assert len([r for r in rows if "validation_loss" in r]) == 12
    policy = Policy.load(ModelSpec(model=str(out / "model")))
    replies = policy.generate(policy.encode([p.text for p in make_prompts(2)]), 12)
    assert {r.text for r in replies} <= {"Sorry, I can't help with that.", "Sure, here is how."}
    assert all(r.finished for r in replies)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("embeddings", [False, None])
def test_frozen_layers_and_embeddings_stay(model_folder, tmp_path, lora, embeddings):
    base, out = model_folder(tie_word_embeddings=True), tmp_path / "out"
    options = AlignOptions(**OPTIONS, frozen_layers=2, train_embeddings=embeddings, lora=lora)
    align(ModelSpec(model=str(base)), make_prompts(4), options, out)
    changed = changed_between(base, out)
    assert {name.split(".")[2] for name in changed if name.startswith("model.layers.")} == {"2", "3"}
    assert not any("embed" in name or "lm_head" in name for name in changed)
    assert LAYERS == 4


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_states_of_held_layers_stay(model_folder, tmp_path, family):
    base, out = model_folder(family), tmp_path / "out"
    align(ModelSpec(model=str(base)), make_prompts(4), AlignOptions(**OPTIONS, frozen_layers=2), out)
    before, after = (
        layer_states(Policy.load(ModelSpec(model=str(folder))), make_prompts(3))
        for folder in (base, out / "model")
    )
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_adapters_and_embeddings_are_not_trained_together():
    with pytest.raises(ValidationError, match="leave out `lora` or `train_embeddings`"):
        AlignOptions(**OPTIONS, lora=LoraOptions(), train_embeddings=True)


@pytest.mark.parametrize("when", ["first", "last"])
def test_a_look_that_was_interrupted_is_taken_again(model_folder, tmp_path, monkeypatch, when):
    spec, options = ModelSpec(model=str(model_folder())), AlignOptions(**OPTIONS, checkpoint_every=2)
    # Two steps an epoch, so that each checkpoint ends one.
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    align(spec, make_prompts(4), options, whole, make_benign(4))
    look, looks = supervised_trainer.SupervisedTrainer.evaluate, []

    def interrupted(self, *args, **kwargs):
        looks.append(self.state.global_step)
        if len(looks) == (1 if when == "first" else 2):
            raise KeyboardInterrupt
        return look(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(supervised_trainer.SupervisedTrainer, "evaluate", interrupted)
        align(spec, make_prompts(4), options, broken, make_benign(4))
    align(spec, make_prompts(4), options, broken, make_benign(4))
    histories = [[row for _, row in read_json_lines(out / "history.jsonl")] for out in (whole, broken)]
    assert [row["step"] for row in histories[0] if "validation_loss" in row] == [2, 4]
    assert histories[0] == histories[1]


def test_an_interrupted_stage_ends_with_the_same_bytes(model_folder, tmp_path, monkeypatch):
    spec = ModelSpec(model=str(model_folder()))
    options = AlignOptions(**OPTIONS, checkpoint_every=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    align(spec, make_prompts(6), options, whole)

    with stopped_at(5, supervised_trainer, "SupervisedTrainer", monkeypatch):  # in the second epoch
        align(spec, make_prompts(6), options, broken)
    assert not (broken / "model").exists()
    align(spec, make_prompts(6), options, broken)
    assert cmp(whole / "model/model.safetensors", broken / "model/model.safetensors", shallow=False)
