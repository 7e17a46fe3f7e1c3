"""What linear modules put out at the end of prompts, and projections folded into their weights, against hooks by hand."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from discernment.errors import ModelError
from discernment.models.layers import find_layers
from discernment.models.linear_outputs import Product, linear_modules, linear_outputs, take_product_out
from tiny import make_model

ROWS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [5, 9, 11, 7, 3, 20]]
EXPECTED = {
    "llama": [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "phi3": ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"],
    "gpt_neox": ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
}


@pytest.mark.parametrize("family", EXPECTED)
def test_outputs_of_every_module_row_by_row(family):
    model = make_model(family)
    layers = find_layers(model)
    modules = linear_modules(model, layers, [2, 3])
    assert {*modules} == {f"{layer}.{name}" for layer in (1, 2) for name in EXPECTED[family]}
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: seen.setdefault(name, []).append(out[0]))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    for pooling, pool in (("last", lambda out: out[-1]), ("mean", lambda out: out.mean(0))):
        found = linear_outputs(model, layers, modules, ROWS, pooling, 0, batch_size=3)
        assert found.keys() == seen.keys()
        for name, outputs in found.items():
            expected = torch.stack([pool(out) for out in seen[name]])
            torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
    assert not any(module._forward_hooks for module in modules.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "phi3"])
def test_changed_weights_put_out_what_a_hook_would_make_of_the_outputs(family):
    model = make_model(family)
    with torch.no_grad():  # biases start at 0
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    layers = find_layers(model)
    modules = linear_modules(model, layers, [2, 3])
    products, handles = {}, []

    def project(module, given, out, name):
        matrix = products[name].left @ products[name].right.T
        return out - 0.7 * out @ matrix.T

    before = model(torch.tensor([ROWS[3]])).logits
    for name, outputs in linear_outputs(model, layers, modules, ROWS, "last", 0).items():
        left, right = torch.randn(2, outputs.shape[1], 3)
        products[name] = Product(left / left.norm(dim=0), right / right.norm(dim=0))
        handles.append(
            modules[name].register_forward_hook(lambda m, a, out, name=name: project(m, a, out, name))
        )
    expected = model(torch.tensor([ROWS[3]])).logits
    for handle in handles:
        handle.remove()
    for name, module in modules.items():
        take_product_out(module, products[name], 0.7)
    torch.testing.assert_close(model(torch.tensor([ROWS[3]])).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - before).abs().max() > 0.1


def test_a_strength_of_zero_leaves_every_bit():
    module, conv = nn.Linear(3, 2), Conv1D(2, 3)
    for changed in (module, conv):
        with torch.no_grad():
            changed.weight.view(-1)[0] = -0.0
        before = [p.detach().clone() for p in changed.parameters()]
        take_product_out(changed, Product(torch.ones(2, 1), torch.ones(2, 1)), 0.0)
        for one, other in zip(before, changed.parameters(), strict=True):
            assert torch.equal(one.view(torch.int32), other.detach().view(torch.int32))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_refused(family):
    model = make_model(family)
    with pytest.raises(ModelError, match=r"cannot be projected module by module .* dense models without exp"):
        linear_modules(model, find_layers(model), [1])
