"""An adapter on the embeddings or the head, folded in, gives the logits that it gives beside the weights.

Where embeddings and head are one matrix, folding a change of one of them into it would change the other as well.
"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from discernment.models.chat import ChatFormat
from discernment.models.loading import load_model
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.training.adapters import leave_policy
from discernment.training.options import LoraOptions

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SOME = ("llama", "gemma3", "gpt2")
"""Families whose embeddings, heads and layers go by different names; gpt2 has its own linear layer."""


def logits(model):
    with torch.inference_mode():
        return model.eval()(IDS).logits


def last(name):
    return name.rpartition(".")[2]


TARGETS = {
    "embeddings": lambda table, head: {"target_modules": [table]},
    "head": lambda table, head: {"target_modules": [head]},
    "both": lambda table, head: {"target_modules": [table, head]},
    "both as one": lambda table, head: {"target_modules": [table], "ensure_weight_tying": True},
    "all linear layers": lambda table, head: {"target_modules": "all-linear"},
    "a head of its own": lambda table, head: {
        "target_modules": "all-linear",
        "modules_to_save": [last(head)],
    },
    "embeddings of their own": lambda table, head: {
        "target_modules": "all-linear",
        "modules_to_save": [last(table)],
    },
    "embeddings of their own, and the head": lambda table, head: {
        "target_modules": [head],
        "modules_to_save": [last(table)],
    },
}


@pytest.fixture(params=[True, False], ids=["tied", "apart"])
def adapt(request, model_folder, tmp_path):
    """Makes a base model and an adapter on parts of it; gives the folders and the model with the adapter beside it."""

    def make(family, what):
        base = model_folder(family, tie_word_embeddings=request.param)
        model = AutoModelForCausalLM.from_pretrained(base)
        names = {module: name for name, module in model.named_modules()}
        table, head = names[model.get_input_embeddings()], names[model.get_output_embeddings()]
        torch.manual_seed(0)
        wrapped = get_peft_model(
            model,
            LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False, **TARGETS[what](table, head)),
        )
        with torch.no_grad():
            for name, weights in wrapped.named_parameters():
                if "modules_to_save" in name:
                    weights += 0.1 * torch.randn_like(weights)
        wrapped.save_pretrained(tmp_path / "adapter")
        return base, tmp_path / "adapter", wrapped

    return make


@pytest.mark.filterwarnings("ignore")  # peft warns of every tied layer
@pytest.mark.parametrize("what", TARGETS)
@pytest.mark.parametrize("family", SOME)
@pytest.mark.thinned(5)
def test_folded_in_and_loaded_again_it_gives_the_same_logits(family, what, adapt, tmp_path):
    base, adapter, wrapped = adapt(family, what)
    expected = logits(wrapped)
    assert float((expected - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max()) > 0.1
    spec = ModelSpec(model=str(base), adapter=str(adapter))
    loaded = load_model(spec)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(again), logits(loaded), atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("keep", ["adapter", "merged", "both"])
@pytest.mark.parametrize("what", ["embeddings", "head", "all linear layers"])
def test_a_stage_leaves_what_it_trained(what, keep, adapt, tmp_path):
    base, _, wrapped = adapt("llama", what)
    expected = logits(wrapped)
    chat = ChatFormat(AutoTokenizer.from_pretrained(base))
    left = leave_policy(
        PolicySpec.of(str(base)), wrapped, chat, LoraOptions(rank=2, keep=keep), tmp_path / "out"
    )
    torch.testing.assert_close(logits(left), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        logits(Policy.load(str(tmp_path / "out")).model), expected, atol=1e-4, rtol=1e-4
    )
    if keep != "merged":
        beside = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), tmp_path / "out/adapter"
        )
        torch.testing.assert_close(logits(beside), expected, atol=1e-4, rtol=1e-4)
