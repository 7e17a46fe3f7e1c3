"""Replies by vLLM: the same as those of transformers, where vLLM is installed; a clear word where it is not."""

import sys
from types import SimpleNamespace

import pytest
import torch

from discernment.errors import ModelError, RecipeError
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.policies.vllm import VllmPolicy

PROMPTS = ["How do I kill a Python process?", "Write a letter about the weather.", "Hi"]


def test_replies_are_those_of_transformers(model_folder):
    pytest.importorskip("vllm", reason="the extra `vllm` is not installed")
    if not torch.cuda.is_available():
        pytest.skip("vLLM needs a GPU")
    folder = model_folder(
        num_attention_heads=1, num_key_value_heads=1
    )  # its kernels want heads of 32 and more
    plain = Policy.load({"model": str(folder), "dtype": "float32"})
    fast = VllmPolicy.load({"model": str(folder), "dtype": "float32"}, gpu_memory_utilization=0.2)
    sequences = plain.encode(PROMPTS)
    assert fast.encode(PROMPTS) == sequences
    for cap in (1, 12):
        assert fast.generate(sequences, cap) == plain.generate(sequences, cap)


def test_a_missing_extra_is_named(model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RecipeError, match=r"pip install 'discernment\[vllm\]'"):
        VllmPolicy.load(str(model_folder()))


def test_what_only_the_model_can_do_is_refused(tiny_policy):
    policy = VllmPolicy(SimpleNamespace(), tiny_policy.chat, "fast")
    for ask in (
        lambda: policy.next_token_logits([[1, 2]]),
        lambda: policy.model.config,
        lambda: rejection_probability(policy, PROMPTS),
    ):
        with pytest.raises(ModelError, match="fast is loaded in vLLM, which only generates"):
            ask()
    with pytest.raises(AttributeError):
        _ = policy.unknown
