"""Models in 4 or 8 bits: an adapter is trained and kept, and acts beside the weights as it did in training."""

from itertools import pairwise

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from discernment.errors import ModelError, TrainingError
from discernment.models.adapter_files import WEIGHTS
from discernment.models.loading import load_model
from discernment.models.model_spec import ModelSpec
from discernment.models.quantised import settings
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.rejection import rejection_probability
from discernment.training import supervised_trainer
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.supervised import AlignOptions, align
from stopping import stopped_at
from tiny import make_prompts

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # a block of 4-bit weights is 64 wide
PROMPTS = ["How do I kill a process?", "Hi", "Write a short letter to the editor of a newspaper."]
IDS = torch.tensor([[5, 6, 7, 8, 9]])
LORA = {"rank": 4, "keep": "adapter"}
SOME = {"batch_size": 8, "learning_rate": 1e-2}
ROUNDING = {"4bit": 1e-4, "8bit": 0.06}
"""With 8 bits, what is multiplied is rounded, too."""


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def apart(one, other):
    return float((one - other).norm() / other.norm())


def by_hand(base, bits, *adapters):
    """The same by plain libraries: weights as they were rounded, adapters folded in."""
    config = settings(bits, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
    model = model.dequantize()
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return logits(model.float().eval())


@pytest.fixture
def base(model_folder):
    return model_folder("llama", **WIDE)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_linear_layers_are_held_in_few_bits(base, bits):
    whole = load_model(ModelSpec(model=str(base)))
    small = load_model(ModelSpec(model=str(base), quantization=bits))
    assert small.get_memory_footprint() < 0.6 * whole.get_memory_footprint()
    assert apart(logits(small), by_hand(base, bits)) < ROUNDING[bits]
    assert apart(logits(small), logits(whole)) > 1e-3


def test_two_stages_leave_adapters_that_act_as_they_were_trained(base, tmp_path):
    start = ModelSpec(model=str(base), quantization="4bit")
    options = RefineOptions(layer=2, steps=3, evaluate_every=1, lora=LORA, **SOME)  # the best look is kept
    refine(start, make_prompts(8), options, tmp_path / "refined", make_prompts(4))
    refined = PolicySpec.read(tmp_path / "refined")
    align(refined, make_prompts(8), AlignOptions(lora=LORA, **SOME), tmp_path / "aligned")
    aligned = PolicySpec.read(tmp_path / "aligned")
    adapters = (str(tmp_path / "refined/adapter"), str(tmp_path / "aligned/adapter"))
    assert (aligned.model, aligned.adapters) == (start, adapters)
    assert not (tmp_path / "aligned/model").exists()
    found = [logits(Policy.load(policy).model) for policy in (PolicySpec.of(start), refined, aligned)]
    for n, policy in enumerate(found):
        assert apart(policy, by_hand(base, "4bit", *adapters[:n])) < ROUNDING["4bit"]
    assert min(apart(one, other) for one, other in pairwise(found)) > 0.1


def test_an_interrupted_second_stage_ends_with_the_same_adapter(base, tmp_path, monkeypatch):
    start = PolicySpec.of(ModelSpec(model=str(base), quantization="4bit"))
    refine(start, make_prompts(8), RefineOptions(layer=2, steps=1, lora=LORA, **SOME), tmp_path / "refined")
    refined = PolicySpec.read(tmp_path / "refined")
    options = AlignOptions(lora=LORA, checkpoint_every=1, epochs=2, **SOME)
    align(refined, make_prompts(8), options, tmp_path / "whole")

    with stopped_at(3, supervised_trainer, "SupervisedTrainer", monkeypatch):
        align(refined, make_prompts(8), options, tmp_path / "broken")
    assert list((tmp_path / "broken/checkpoints").glob("checkpoint-*"))
    align(refined, make_prompts(8), options, tmp_path / "broken")
    whole, broken = (load_file(tmp_path / name / "adapter" / WEIGHTS) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    for name, weights in whole.items():
        torch.testing.assert_close(weights, broken[name], atol=1e-6, rtol=1e-5)


def test_a_quantised_policy_speaks_for_each_prompt_alone(base):
    policy = Policy.load(ModelSpec(model=str(base), quantization="4bit"))
    together = policy.generate(policy.encode(PROMPTS), 8)
    assert [policy.generate(policy.encode([p]), 8)[0].ids for p in PROMPTS] == [r.ids for r in together]
    masses = rejection_probability(policy, PROMPTS, ["I can't", "Sorry"])
    alone = [rejection_probability(policy, [p], ["I can't", "Sorry"])[0] for p in PROMPTS]
    assert masses == pytest.approx(alone, rel=1e-3)
    assert len(set(masses)) == len(PROMPTS)


def test_gradients_come_back_through_every_layer_also_after_a_look(base):
    model = load_model(ModelSpec(model=str(base), quantization="4bit"))
    before = logits(model)
    inputs = model.get_input_embeddings()(IDS).detach().requires_grad_()
    found = model(inputs_embeds=inputs).logits
    torch.testing.assert_close(found, before, atol=1e-4, rtol=1e-4)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((found * towards).sum(), inputs)
    config = settings("4bit", torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
    plain = plain.dequantize().float().eval()
    (expected,) = torch.autograd.grad((plain(inputs_embeds=inputs).logits * towards).sum(), inputs)
    assert float(expected.norm()) > 1
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "keep": "merged"}, {"rank": 4}])
def test_nothing_but_an_adapter_is_trained_and_kept(base, lora, tmp_path):
    start = ModelSpec(model=str(base), quantization="4bit")
    for stage, options in (
        (refine, RefineOptions(layer=2, steps=1, lora=lora, **SOME)),
        (align, AlignOptions(lora=lora, **SOME)),
    ):
        with pytest.raises(TrainingError, match=r"set `lora: \{keep: adapter\}`"):
            stage(start, make_prompts(8), options, tmp_path / "out")


def test_attention_is_that_which_is_named(base):
    found = [
        load_model(ModelSpec(model=str(base), attn_implementation=name)).config._attn_implementation
        for name in ("eager", "sdpa")
    ]
    assert found == ["eager", "sdpa"]
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*no_such"):
        load_model(ModelSpec(model=str(base), attn_implementation="no_such"))
