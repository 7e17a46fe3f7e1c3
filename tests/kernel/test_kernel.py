import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from torch import nn

from brute_force import in_double, jacobian, kernel, unit_rows
from discernment.errors import DataError, DiscernmentError, ModelError
from discernment.kernel import collect, job
from discernment.kernel.backward import BackwardPass
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.kernel.rows import probe_rows
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from rules import Shifted
from tiny import FAMILIES, LAYERS, make_model

PROMPTS = [
    "How do I kill a Python process?",
    "Write a letter.",
    "What is the best way to steal the show? Tell me more.",
    "Hi",
]
REPLIES = ["Sure, here is how.", "No.", "I'm sorry, but I can't help with that.", "Hi"]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(params=["ghost", "moved", "materialised"])
def way(request, monkeypatch):
    """All ways to the inner products; the tiny models' sizes would always choose the same one."""
    monkeypatch.setattr(collect, "cheapest_way", lambda *sizes: request.param)
    return request.param


@pytest.fixture
def make_policy(tokenizer):
    def make(family="llama", dtype=torch.float32, **changes):
        model = make_model(family, len(tokenizer), **changes)
        model = in_double(model) if dtype is torch.float64 else model
        return Policy(model, ChatFormat(tokenizer), family)

    return make


def reference(policy, tokens, wanted=lambda name: True):
    size = policy.model.config.vocab_size
    return kernel(
        [
            jacobian(policy.model, ids, unit_rows(rows, size), wanted)
            for ids, rows in zip(policy.encode(PROMPTS[: len(tokens)]), tokens, strict=True)
        ]
    )


def error(found, expected):
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("rows", ["shared", "own"])
@pytest.mark.thinned(5)
def test_rows_of_tokens_equal_autograd(make_policy, family, dtype, rows, way):
    policy = make_policy(family, dtype)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(rows=rows, k=3, batch_size=3))
    expected = reference(policy, found.tokens)
    assert len({len(s) for s in policy.encode(PROMPTS)}) > 2  # there is padding
    assert error(found.blocks, expected) < EXACT[dtype]
    norms = torch.einsum("irjq,irjq->ij", expected, expected).sqrt()
    np.testing.assert_allclose(found.norms, norms, rtol=EXACT[dtype] * 10)
    assert found.noise_floor < EXACT[dtype]


@pytest.mark.parametrize(
    "family", [f if f in ("llama", "gemma2") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64])
def test_the_exact_norm_over_the_whole_vocabulary_equals_autograd(make_policy, family, dtype):
    policy = make_policy(family, dtype)
    found = gradient_kernel(policy, PROMPTS[:2], KernelOptions(rows="exact"))
    size = policy.model.config.vocab_size
    expected = kernel(
        [jacobian(policy.model, ids, unit_rows(range(size), size)) for ids in policy.encode(PROMPTS[:2])]
    )
    norms = torch.einsum("irjq,irjq->ij", expected, expected).sqrt().numpy()
    # Gemma 2's attention takes its softmax in float32 whatever the model's dtype.
    tolerance = max(EXACT[dtype], 1e-8 if family == "gemma2" else 0)
    np.testing.assert_allclose(found.norms, norms, rtol=tolerance)


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("qwen2", True), ("gpt2", False), ("gemma2", False)]
)
@pytest.mark.parametrize("rows", ["own", "exact"])
@pytest.mark.thinned(3)
def test_tied_and_untied_heads(make_policy, family, tied, rows):
    policy = make_policy(family, tie_word_embeddings=tied)
    head, embedding = policy.model.get_output_embeddings(), policy.model.get_input_embeddings()
    assert (head.weight is embedding.weight) == tied
    found = gradient_kernel(policy, PROMPTS[:2], KernelOptions(rows=rows, k=4))
    size = policy.model.config.vocab_size
    expected = reference(policy, found.tokens or [range(size)] * 2)
    norms = torch.einsum("irjq,irjq->ij", expected, expected).sqrt().numpy()
    np.testing.assert_allclose(found.norms, norms, rtol=1e-5)


def test_probes_see_the_same_kernel(make_policy):
    policy = make_policy("gpt2", torch.float64)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(rows="probes", probes=3, batch_size=3, seed=5))
    # The job sorts the prompts by length; the probes belong to the places in that order.
    order = sorted(range(4), key=lambda p: -len(policy.encode(PROMPTS)[p]))
    probes = probe_rows(torch.zeros(4, 1, policy.model.config.vocab_size, dtype=torch.float64), [1] * 4, 3, 5)
    jacobians = {
        p: jacobian(policy.model, policy.encode(PROMPTS)[p], probes.values[place])
        for place, p in enumerate(order)
    }
    expected = kernel([jacobians[p] for p in range(4)])
    assert error(found.blocks, expected) < 1e-10
    u_k_v = expected[0, :3, 2, 3:]
    v_k_u = expected[2, :3, 0, 3:]
    squared = (u_k_v.square().mean() + v_k_u.square().mean()) / 2
    assert found.norms[0, 2] == pytest.approx(float(squared.sqrt()))
    assert (found.errors > 0).all()


@pytest.mark.parametrize("rows", ["own", "shared", "likelihood"])
@pytest.mark.thinned(4)
def test_whole_replies_equal_autograd(make_policy, family, rows, way):
    policy = make_policy(family)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(rows=rows, k=2, batch_size=3), replies=REPLIES)
    size = policy.model.config.vocab_size
    jacobians = []
    for prompt, reply, tokens in zip(
        policy.encode(PROMPTS),
        map(policy.chat.encode_reply, PROMPTS, REPLIES),
        found.tokens or [None] * 4,
        strict=True,
    ):
        sequence = [*prompt, *reply[:-1]]
        places = torch.arange(len(reply))
        if rows == "likelihood":
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([sequence])).logits[0, -len(reply) :]
            directions = -torch.softmax(logits, -1)
            directions[places, reply] += 1
            directions = directions[None]
        else:
            if rows == "own":
                assert tokens == reply
            per_place = len(tokens) // len(reply)
            directions = torch.zeros(len(tokens), len(reply), size)
            directions[torch.arange(len(tokens)), places.repeat_interleave(per_place), tokens] = 1
        jacobians.append(jacobian(policy.model, sequence, directions))
    most = max(map(len, jacobians))
    padded = [nn.functional.pad(j, (0, 0, 0, most - len(j))) for j in jacobians]
    assert error(found.blocks, kernel(padded)) < 1e-5


SUBSETS = {
    "layers 2 to 3": (KernelOptions(layers=(2, 3)), lambda n: ".1." in n or ".2." in n),
    "without the head": (KernelOptions(head=False), lambda n: "lm_head" not in n and "embed_out" not in n),
}


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen3"])
def test_parts_of_the_parameters(make_policy, family, subset):
    options, wanted = SUBSETS[subset]
    policy = make_policy(family)
    found = gradient_kernel(policy, PROMPTS, options)
    assert error(found.blocks, reference(policy, found.tokens, wanted)) < 1e-5


def test_breakdown_by_layer(make_policy):
    policy = make_policy("llama", torch.float64)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(by_layer=True, k=3))
    names = {
        "embeddings": "embed_tokens",
        "norm": "model.norm",
        "head": "lm_head",
        **{f"layer {n + 1}": f"layers.{n}." for n in range(LAYERS)},
    }
    assert found.parts == ("embeddings", *(f"layer {n + 1}" for n in range(LAYERS)), "norm", "head")
    total = found.blocks
    for part, norms, shares, traces in zip(
        found.parts, found.part_norms, found.shares, found.traces, strict=True
    ):
        expected = reference(policy, found.tokens, lambda n, part=part: names[part] in n)
        np.testing.assert_allclose(norms, torch.einsum("irjq,irjq->ij", expected, expected).sqrt())
        inner = torch.einsum("irjq,irjq->ij", expected, total) / torch.einsum("irjq,irjq->ij", total, total)
        np.testing.assert_allclose(shares, inner, atol=1e-12)
        np.testing.assert_allclose(traces, torch.einsum("irir->i", expected))
    np.testing.assert_allclose(found.shares.sum(0), 1)


def with_adapters(policy, family):
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}[family]
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    return Policy(get_peft_model(policy.model, config).eval(), policy.chat, family)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("parameters", ["all", "lora"])
@pytest.mark.thinned(5)
def test_adapters(make_policy, family, parameters, way):
    policy = with_adapters(make_policy(family), family)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(parameters=parameters, k=3))
    expected = reference(policy, found.tokens, lambda n: parameters == "all" or "lora_" in n)
    assert error(found.blocks, expected) < 1e-5


def test_the_exact_norm_is_refused_where_an_adapter_stands_beside_the_head(make_policy):
    policy = make_policy("llama")
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    adapted = Policy(get_peft_model(policy.model, config).base_model.model, policy.chat, "adapted")
    with pytest.raises(ModelError, match="adapter beside the head"):
        gradient_kernel(adapted, PROMPTS[:2], KernelOptions(rows="exact"))


@pytest.mark.parametrize("layers", [(0, 1), (2, 1)])
def test_layers_out_of_order_are_refused(layers):
    with pytest.raises(ValidationError, match="layers are counted from 1"):
        KernelOptions(layers=layers)


def test_the_exact_norm_over_adapters_leaves_the_head_out(make_policy):
    policy = with_adapters(make_policy("llama", tie_word_embeddings=False), "llama")
    size = policy.model.config.vocab_size
    found = gradient_kernel(policy, PROMPTS[:2], KernelOptions(rows="exact", parameters="lora"))
    expected = reference(policy, [range(size)] * 2, lambda name: "lora_" in name)
    norms = torch.einsum("irjq,irjq->ij", expected, expected).sqrt().numpy()
    np.testing.assert_allclose(found.norms, norms, rtol=1e-5)


def test_alone_or_in_a_batch_in_any_order(make_policy, way):
    policy = make_policy("qwen2")
    options = KernelOptions(k=5)
    together = gradient_kernel(policy, PROMPTS, options.model_copy(update={"batch_size": 4}))
    alone = gradient_kernel(policy, PROMPTS, options.model_copy(update={"batch_size": 1}))
    turned = gradient_kernel(policy, PROMPTS[::-1], options)
    np.testing.assert_allclose(alone.norms, together.norms, rtol=1e-5)
    np.testing.assert_allclose(turned.norms[::-1, ::-1], together.norms, rtol=1e-5)
    np.testing.assert_allclose(together.norms, together.norms.T)


def test_a_small_budget_goes_through_a_file(make_policy, way):
    policy = make_policy()
    plain = gradient_kernel(policy, PROMPTS)
    filed = gradient_kernel(policy, PROMPTS, KernelOptions(memory_gib=1e-9))
    torch.testing.assert_close(filed.blocks, plain.blocks, rtol=1e-6, atol=0)


def test_taps_are_the_states_and_the_tails_jacobian(make_policy):
    policy = make_policy("llama", torch.float64)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(k=3), taps=[2, LAYERS])
    assert sorted(found.taps) == [2, LAYERS]
    for layer, tap in found.taps.items():
        for place, ids in enumerate(policy.encode(PROMPTS)):
            kept = []
            handle = policy.model.model.layers[layer - 1].register_forward_hook(
                lambda m, a, o, kept=kept: kept.append(o[0] if isinstance(o, tuple) else o)
            )
            logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1]
            handle.remove()
            torch.testing.assert_close(tap.states[place], kept[0][0, -1])
            for row, token in enumerate(found.tokens[place]):
                (gradient,) = torch.autograd.grad(logits[token], kept[0], retain_graph=True)
                torch.testing.assert_close(tap.jacobians[place, row], gradient[0, -1])


def test_cross_check_with_torch_func(make_policy):
    """Gradient inner products of a scalar, by another library on the same model."""
    policy = make_policy("gpt_neox", torch.float64)
    found = gradient_kernel(policy, PROMPTS, KernelOptions(rows="likelihood"), replies=REPLIES)
    weights = {name: p.detach() for name, p in policy.model.named_parameters()}
    gradients = []
    for prompt, reply in zip(
        policy.encode(PROMPTS), map(policy.chat.encode_reply, PROMPTS, REPLIES), strict=True
    ):
        ids = torch.tensor([[*prompt, *reply]])

        def loss(values, ids=ids, reply=reply):
            logits = torch.func.functional_call(policy.model, values, (ids,)).logits[0]
            return nn.functional.cross_entropy(
                logits[-len(reply) - 1 : -1], ids[0, -len(reply) :], reduction="sum"
            )

        found_here = torch.func.grad(loss)(weights)
        gradients.append(torch.cat([g.flatten() for g in found_here.values()]))
    gram = torch.stack(gradients) @ torch.stack(gradients).T
    torch.testing.assert_close(found.blocks[:, 0, :, 0], gram, rtol=1e-10, atol=0)


def test_an_interrupted_measurement_goes_on(make_policy, tmp_path, monkeypatch):
    policy = make_policy()
    monkeypatch.setattr(job, "SAVE_EVERY_SECONDS", 0)
    plain = gradient_kernel(policy, PROMPTS, KernelOptions(by_layer=True), taps=[3])
    state = tmp_path / "kernel.safetensors"

    def stop(done, of):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradient_kernel(policy, PROMPTS, KernelOptions(by_layer=True), taps=[3], resume=state, progress=stop)
    assert state.is_file()
    passed = []
    layer = BackwardPass.layer

    def count(self, number, consume):
        passed.append(number)
        return layer(self, number, consume)

    monkeypatch.setattr(BackwardPass, "layer", count)
    seen = []
    again = gradient_kernel(
        policy,
        PROMPTS,
        KernelOptions(by_layer=True),
        taps=[3],
        resume=state,
        progress=lambda done, of: seen.append((done, of)),
    )
    assert passed[:2] == [LAYERS - 2, LAYERS - 3]
    assert seen == [(n, LAYERS) for n in range(1, LAYERS + 1)]
    assert not state.exists()
    torch.testing.assert_close(again.blocks, plain.blocks, rtol=0, atol=0)
    torch.testing.assert_close(again.taps[3].jacobians, plain.taps[3].jacobians, rtol=0, atol=0)
    np.testing.assert_array_equal(again.part_norms, plain.part_norms)


def test_the_state_of_another_measurement_is_not_taken_up(make_policy, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "SAVE_EVERY_SECONDS", 0)
    state = tmp_path / "kernel.safetensors"

    def stop(done, of):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradient_kernel(make_policy(), PROMPTS, resume=state, progress=stop)
    policy = make_policy(seed=1)
    found = gradient_kernel(policy, PROMPTS, resume=state)
    torch.testing.assert_close(found.blocks, gradient_kernel(policy, PROMPTS).blocks, rtol=0, atol=0)
    # The same weights under a rule of another strength.
    with pytest.raises(KeyboardInterrupt):
        gradient_kernel(_shifted(policy, 1.0), PROMPTS, resume=state, progress=stop)
    assert state.is_file()
    found = gradient_kernel(_shifted(policy, 0.5), PROMPTS, resume=state)
    expected = gradient_kernel(_shifted(policy, 0.5), PROMPTS)
    torch.testing.assert_close(found.blocks, expected.blocks, rtol=0, atol=0)


def _shifted(policy, strength):
    return Policy(policy.model, policy.chat, "tiny", rule=Shifted(strength=strength))


def test_the_model_is_as_it_was(make_policy):
    policy = make_policy()
    model = policy.model.train()
    model.model.layers[0].requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    attention = model.config._attn_implementation
    gradient_kernel(policy, PROMPTS)
    assert all(module.training for module in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert (model.lm_head.weight.grad == 1).all()
    assert all(p.grad is None for name, p in model.named_parameters() if "lm_head" not in name)
    assert model.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---------------------------------------------------------------------- what cannot be measured


def test_a_prompt_with_values_that_are_not_finite_is_unscored(make_policy):
    policy = make_policy()
    plain = gradient_kernel(policy, [PROMPTS[0], PROMPTS[1], PROMPTS[3]], KernelOptions(rows="own"))
    only_there = set(policy.encode(PROMPTS)[2]) - {t for p in (0, 1, 3) for t in policy.encode(PROMPTS)[p]}
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[only_there.pop()] = torch.nan
    found = gradient_kernel(policy, PROMPTS, KernelOptions(rows="own"))
    assert list(found.unscored) == [2]
    assert np.isnan(found.norms[2]).all() and np.isnan(found.norms[:, 2]).all()
    kept = np.ix_([0, 1, 3], [0, 1, 3])
    np.testing.assert_allclose(found.norms[kept], plain.norms, rtol=1e-5)
    assert found.tokens[2] == []


def test_nothing_finite_is_an_error(make_policy):
    policy = make_policy()
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite for 4 of 4"):
        gradient_kernel(policy, PROMPTS)


class Matrix(nn.Module):
    """A linear layer that does not say so."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight

    def forward(self, x):
        return x @ self.weight.T


def without_linear_layers(model):
    for layer in model.model.layers:
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Matrix(child))
    return model


def test_a_model_without_linear_layers(make_policy):
    policy = make_policy()
    without_linear_layers(policy.model)
    with pytest.raises(ModelError, match="no linear layers"):
        gradient_kernel(policy, PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "options", "replies", "message"),
    [
        ([], None, None, "there is 0"),
        (PROMPTS[:1], None, None, "there is 1"),
        ([PROMPTS[0], "word " * 400], None, None, "tokens and llama can read 256"),
        (PROMPTS, None, REPLIES[:2], "2 replies for 4 prompts"),
        (PROMPTS, KernelOptions(rows="exact"), REPLIES, "exact"),
        (PROMPTS, KernelOptions(rows="likelihood"), None, "give a reply"),
        (PROMPTS, KernelOptions(layers=(3, 9)), None, "Layer 9 is out of range"),
        (PROMPTS, KernelOptions(parameters="lora"), None, "none of the parameters"),
    ],
)
def test_mistakes_are_said_in_one_sentence(make_policy, prompts, options, replies, message):
    with pytest.raises(DiscernmentError, match=message):
        gradient_kernel(make_policy(), prompts, options, replies=replies)


def test_low_precision_is_refused(make_policy):
    policy = make_policy()
    policy.model.bfloat16()
    with pytest.raises(ModelError, match="dtype: float32"):
        gradient_kernel(policy, PROMPTS)


def test_shared_parameters_are_refused(make_policy):
    policy = make_policy()
    layers = policy.model.model.layers
    layers[1].self_attn.q_proj.weight = layers[0].self_attn.q_proj.weight
    with pytest.raises(ModelError, match="used by several layers"):
        gradient_kernel(policy, PROMPTS)


@settings(max_examples=15, deadline=None)
@given(
    texts=st.lists(st.text("abc de?", min_size=1, max_size=30), min_size=2, max_size=5),
    rows=st.sampled_from(["shared", "own"]),
)
def test_any_prompts_give_a_symmetric_positive_kernel(texts, rows, tokenizer_module):
    policy = Policy(
        make_model("gpt_neox", len(tokenizer_module)).double(), ChatFormat(tokenizer_module), "any"
    )
    found = gradient_kernel(policy, texts, KernelOptions(rows=rows, k=2))
    n, k = len(texts), 2
    flat = found.blocks.reshape(n * k, n * k)
    torch.testing.assert_close(flat, flat.T)
    assert float(torch.linalg.eigvalsh(flat)[0]) > -1e-9 * float(flat.trace())
    for i in range(n):
        for j in range(n):
            if texts[i] == texts[j]:
                np.testing.assert_allclose(found.norms[i], found.norms[j], rtol=1e-8)


@pytest.fixture(scope="module")
def tokenizer_module(tokenizer):
    return tokenizer


def test_unusual_prompts_raise_data_errors(make_policy):
    with pytest.raises(DataError):
        gradient_kernel(make_policy(), ["only one"])


def test_layers_that_have_to_be_named(make_policy):
    policy = make_policy("llama")
    expected = gradient_kernel(policy, PROMPTS[:2], KernelOptions(k=2, rows="own", noise_floor=False)).norms
    policy.model.model.others = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(LAYERS)])
    with pytest.raises(ModelError, match="name the list with `layers`"):
        gradient_kernel(policy, PROMPTS[:2], KernelOptions(k=2, rows="own", noise_floor=False))
    policy.layer_path = "model.layers"
    named = gradient_kernel(policy, PROMPTS[:2], KernelOptions(k=2, rows="own", noise_floor=False)).norms
    assert named == pytest.approx(expected)
