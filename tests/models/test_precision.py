"""Where a model computes, in which precision, and how it is checked where that is less than float32."""

import copy
import logging

import pytest
import torch
import transformers

from discernment.errors import ModelError
from discernment.models import self_check
from discernment.models.logits import takes_padding
from discernment.models.model_spec import ModelSpec
from discernment.models.precision import DTYPE, choose_device, choose_dtype, free_memory, trains_mixed
from discernment.policies.generation import reply_way
from discernment.training.attention import SHORT, quick_attention
from logs import own_messages
from tiny import make_model

CPU = torch.device("cpu")
AUTO = ModelSpec(model="x", device="cpu")


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_processor_computes_in_what_it_multiplies(monkeypatch, has, expected):
    monkeypatch.delenv(DTYPE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert choose_dtype(AUTO, CPU) is expected
    assert trains_mixed(AUTO) == (expected is torch.bfloat16)
    named = ModelSpec(model="x", device="cpu", dtype="float32")
    assert choose_dtype(named, CPU) is torch.float32
    assert not trains_mixed(named)


def test_the_environment_says_what_auto_is(monkeypatch):
    for name in ("bfloat16", "float32"):
        monkeypatch.setenv(DTYPE, name)
        assert choose_dtype(AUTO, CPU) is getattr(torch, name)
        assert choose_dtype(ModelSpec(model="x", dtype="float16"), CPU) is torch.float16
    monkeypatch.setenv(DTYPE, "int4")
    with pytest.raises(ModelError, match=f"^{DTYPE} is 'int4'; set it to float32 or bfloat16, or leave"):
        choose_dtype(AUTO, CPU)


def test_devices_that_are_not_there_are_told():
    assert choose_device(AUTO) == CPU
    for device in ("warp-drive", "cuda:99"):
        with pytest.raises(
            ModelError, match=f"The device '{device}' cannot be used here; try `device: auto`."
        ):
            choose_device(ModelSpec(model="x", device=device))


def test_a_torch_for_gpus_without_one_computes_on_the_processor(monkeypatch):
    def accelerator(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", accelerator)
    assert choose_device(ModelSpec(model="x")) == CPU


def test_the_memory_of_the_machine_is_seen():
    assert 1 << 20 < free_memory(CPU) < 1 << 50


def rough_model(dtype: torch.dtype):
    """One in which rounding to few digits grows through many layers."""
    model = make_model("llama", num_hidden_layers=24)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_a_mistake(dtype, caplog):
    model = rough_model(dtype)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        batch, alone = model(ids).logits[1], model(ids[1:]).logits[0]
        exact = model.float()(ids[1:]).logits[0]
    model.to(dtype)
    off = (exact - alone.float()).norm(dim=-1) / exact.norm(dim=-1)
    assert off.max() > self_check._tolerance(dtype, False, False)  # else this shows nothing
    assert batch.shape == alone.shape
    with caplog.at_level(logging.WARNING):
        assert takes_padding(model, 0)
        assert reply_way(model, 0) == 0
    assert not own_messages(caplog)
    assert model.dtype is dtype
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())
    assert all(weights.dtype is dtype for weights in model.parameters())


def test_mistakes_are_seen_in_bfloat16_too():
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=400, max_seq_len=256)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(0, 0.2)
    rough = copy.deepcopy(model).bfloat16()
    found = takes_padding(model, 0), reply_way(model, 0)
    assert found != (True, 0)
    assert (takes_padding(rough, 0), reply_way(rough, 0)) == found


def test_without_memory_only_gross_mistakes_are_seen(monkeypatch):
    monkeypatch.setattr(self_check, "free_memory", lambda device: 1000)
    seen = []
    monkeypatch.setattr(self_check, "_tolerance", lambda *args: seen.append(args) or self_check.GROSS)
    assert takes_padding(make_model("llama").bfloat16(), 0)
    assert seen == [(torch.bfloat16, False, True)]


def test_attention_that_knows_no_float32_is_checked_as_it_is():
    model = make_model("llama").bfloat16()
    config = copy.deepcopy(model.config)
    config._attn_implementation_internal = "flash_attention_2"  # which is not installed here
    with self_check._in_float32(model, config) as rough:
        assert (rough, model.dtype) == (True, torch.bfloat16)
    with self_check._in_float32(model, model.config) as rough:
        assert (rough, model.dtype) == (False, torch.float32)
    assert model.dtype is torch.bfloat16


@pytest.mark.parametrize(("length", "mixed"), [(SHORT, True), (SHORT + 1, True), (SHORT, False)])
def test_attention_of_short_rows_is_plain_in_mixed_training(length, mixed):
    states = torch.randn(1, 2, length, 8, requires_grad=True)
    ids = torch.zeros(1, length, dtype=torch.long)
    with quick_attention(ids, mixed=mixed):
        out = torch.nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)
    fused = "FlashAttention" in type(out.grad_fn).__name__
    assert fused == (length > SHORT or not mixed)
    expected = torch.nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)
    torch.testing.assert_close(out, expected)
