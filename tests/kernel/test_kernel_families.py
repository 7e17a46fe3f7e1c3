"""The gradient kernel of mixtures of experts and of everything else that is not plainly made of linear maps."""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from architectures import FAMILIES, make_tiny
from brute_force import in_double, jacobian, kernel, unit_rows
from discernment.errors import ModelError
from discernment.kernel.checks import check_room
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.gram import Storage
from discernment.kernel.kernel import KernelOptions
from discernment.kernel.routed import RoutedFactor, Slots
from discernment.kernel.survey import Rules
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from tiny import make_model

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"
PROMPTS = ["How do I kill a Python process?", "Write a letter.", "What is it? Tell me more.", "Hi"]
REPLIES = ["Sure, here is how.", "No.", "I can't.", "Hi"]
EXPERTS = ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "qwen2_moe", "deepseek_v3"]
OPTIONS = KernelOptions(k=2, batch_size=3, noise_floor=False)
# The router of DeepSeek-V3 computes in float32 whatever the model's dtype.
DOUBLE = {**dict.fromkeys([*EXPERTS, "opt", "jetmoe", "mamba", "mpt"], 1e-10), "deepseek_v3": 1e-7}


@pytest.fixture
def make_policy(tokenizer):
    def make(family, double=False, change=lambda model: model, **changes):
        model = change(make_tiny(family, len(tokenizer), **changes))
        return Policy(in_double(model) if double else model, ChatFormat(tokenizer), family)

    return make


def reference(policy, tokens, wanted=lambda name: True):
    encoded = policy.encode(PROMPTS[: len(tokens)])
    assert len({len(ids) for ids in encoded}) > 1  # there is padding
    size = policy.model.config.vocab_size
    return kernel(
        [
            jacobian(policy.model, ids, unit_rows(t, size), wanted)
            for ids, t in zip(encoded, tokens, strict=True)
        ]
    )


def error(found, expected):
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def check(policy, tolerance=1e-5, options=OPTIONS, wanted=lambda name: True):
    found = gradient_kernel(policy, PROMPTS, options)
    assert error(found.blocks, reference(policy, found.tokens, wanted)) < tolerance


# ---------------------------------------------------------------------- it equals autograd


@pytest.mark.parametrize("family", [*EXPERTS, "opt", "mamba", "mvp", "bert"])
def test_the_kernel_equals_autograd(make_policy, family):
    check(make_policy(family))


@pytest.mark.parametrize("family", DOUBLE)
def test_the_kernel_equals_autograd_in_float64(make_policy, family):
    check(make_policy(family, double=True), DOUBLE[family], OPTIONS.model_copy(update={"rows": "own"}))


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_padded_or_alone(make_policy, family):
    policy = make_policy(family, double=True)
    padded = gradient_kernel(policy, PROMPTS, OPTIONS.model_copy(update={"batch_size": 4}))
    alone = gradient_kernel(policy, PROMPTS, OPTIONS.model_copy(update={"batch_size": 1}))
    turned = gradient_kernel(policy, PROMPTS[::-1], OPTIONS)
    torch.testing.assert_close(padded.blocks, alone.blocks, rtol=1e-9, atol=0)
    torch.testing.assert_close(turned.blocks.flip(0, 2), padded.blocks, rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "opt"])
def test_the_whole_vocabulary(make_policy, family):
    policy = make_policy(family)
    found = gradient_kernel(policy, PROMPTS[:2], KernelOptions(rows="exact", noise_floor=False))
    expected = reference(policy, [range(policy.model.config.vocab_size)] * 2)
    norms = torch.einsum("irjq,irjq->ij", expected, expected).sqrt()
    torch.testing.assert_close(torch.from_numpy(found.norms), norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_the_likelihood_of_replies(make_policy, family):
    policy = make_policy(family)
    options = KernelOptions(rows="likelihood", batch_size=3, noise_floor=False)
    found = gradient_kernel(policy, PROMPTS, options, replies=REPLIES)
    jacobians = []
    for prompt, reply in zip(
        policy.encode(PROMPTS), map(policy.chat.encode_reply, PROMPTS, REPLIES), strict=True
    ):
        sequence = [*prompt, *reply[:-1]]
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([sequence])).logits[0, -len(reply) :]
        directions = -torch.softmax(logits, -1)
        directions[torch.arange(len(reply)), reply] += 1
        jacobians.append(jacobian(policy.model, sequence, directions[None]))
    assert error(found.blocks, kernel(jacobians)) < 1e-5


@pytest.mark.parametrize("parameters", ["all", "lora"])
@pytest.mark.parametrize(
    ("family", "targets", "named"),
    [
        ("mixtral", ["q_proj", "v_proj"], None),
        ("mixtral", ["q_proj"], ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]),
        ("opt", ["fc1", "embed_tokens"], None),
    ],
)
def test_adapters(make_policy, family, targets, named, parameters):
    def adapted(model):
        torch.manual_seed(1)
        config = LoraConfig(
            r=2,
            init_lora_weights=False,
            target_modules=targets,
            target_parameters=named,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config).eval()

    policy = make_policy(family, change=adapted)
    options = OPTIONS.model_copy(update={"parameters": parameters})
    check(policy, options=options, wanted=lambda name: parameters == "all" or "lora_" in name)


def test_parts_of_a_mixture_of_experts(make_policy):
    options = OPTIONS.model_copy(update={"layers": (2, 3)})
    check(
        make_policy("mixtral"),
        options=options,
        wanted=lambda name: "layers.1." in name or "layers.2." in name,
    )


@pytest.mark.parametrize("experts", ["batched_mm", "eager", "grouped_mm"])
def test_the_way_to_run_experts_is_as_it_was(make_policy, experts):
    policy = make_policy("qwen3_moe")
    policy.model.set_experts_implementation(experts)
    check(policy)
    assert policy.model.config._experts_implementation == experts
    assert all(parameter.requires_grad for parameter in policy.model.parameters())


class Gated(nn.Module):
    """A map with weights of its own, two inputs, and a constant that nobody uses."""

    def __init__(self, linear):
        super().__init__()
        self.weight = linear.weight
        self.scale = nn.Parameter(torch.randn(linear.out_features))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x, times):
        return self.scale * (x @ self.weight.T) * times


class Mlp(nn.Module):
    """One that calls a linear map twice, and a module that the kernel has no rule for."""

    def __init__(self, mlp):
        super().__init__()
        self.down, self.up = mlp.down_proj, Gated(mlp.up_proj)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x, 2.0))) + self.down(self.up(x, times=0.5))


def test_modules_without_a_rule(tokenizer):
    model = make_model("llama", len(tokenizer))
    for layer in model.model.layers[1:3]:
        layer.mlp = Mlp(layer.mlp)
    check(Policy(model, ChatFormat(tokenizer), "odd"))


def test_a_tie_within_a_layer(tokenizer):
    model = make_model("llama", len(tokenizer))
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[1].mlp.gate_proj.weight
    check(Policy(model, ChatFormat(tokenizer), "tied"))


def test_experts_by_hand():
    generator = torch.Generator().manual_seed(0)
    factor = RoutedFactor(Storage(1e9))
    gradients = []
    for prompts, slots, places in ((2, 7, 7), (1, 3, 2), (3, 12, 5)):
        inputs = torch.randn(slots, 4, generator=generator, dtype=torch.float64)
        given = torch.randn(places, 2, 5, generator=generator, dtype=torch.float64)
        experts = torch.randint(3, (slots,), generator=generator).sort().values
        owners = torch.randint(prompts, (slots,), generator=generator)
        rows = torch.randint(places, (slots,), generator=generator)
        factor.add(inputs, given, Slots(prompts, experts, owners, rows))
        whole = torch.zeros(prompts, 2, 3, 4, 5, dtype=torch.float64)
        for s in range(slots):
            whole[owners[s], :, experts[s]] += inputs[s][None, :, None] * given[rows[s]][:, None]
        gradients.append(whole.flatten(2))
        if prompts == 1:
            factor.flush()
    expected = torch.einsum("irx,jqx->irjq", torch.cat(gradients), torch.cat(gradients))
    found = torch.zeros_like(expected)
    factor.add_gram(found)
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------------- what cannot be measured


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gemma4_text", "embeddings on past the hidden states"),
        ("deepseek_v4", "more than one state a token"),
        ("zaya", "more than the hidden states from the layers before"),
        ("longcat_flash", "layers of LongcatFlashForCausalLM are not found"),
    ],
)
def test_what_the_kernel_cannot_cover_is_said_in_one_sentence(make_policy, family, message):
    with pytest.raises(ModelError, match=message) as caught:
        gradient_kernel(make_policy(family), PROMPTS, OPTIONS)
    assert str(caught.value).endswith((".", ")."))


def test_layers_that_share_a_module_are_refused(tokenizer):
    model = make_model("llama", len(tokenizer))
    model.model.layers[2].mlp = model.model.layers[1].mlp
    with pytest.raises(ModelError, match=r"layers\.1\.mlp.* used by several layers"):
        gradient_kernel(Policy(model, ChatFormat(tokenizer), "shared"), PROMPTS, OPTIONS)


def test_too_little_room_for_gradients_is_told_before_they_are_made():
    part = {"layer.odd": nn.LayerNorm(1000)}
    rules = Rules({}, frozenset(), frozenset(), frozenset(), {"layer.odd": ("weight",)}, True, frozenset())
    check_room(Storage(0), rules, [part], lambda name: True, gradients=10)
    check_room(Storage(0), rules, [part], lambda name: False, gradients=10**13)
    with pytest.raises(ModelError, match=r"layer\.odd \(LayerNorm\).*37,252,903 GiB.*take fewer prompts"):
        check_room(Storage(0), rules, [part], lambda name: True, gradients=10**13)


# ---------------------------------------------------------------------- all families


def refused():
    """The families that docs say are refused."""
    _, found, section = DOCS.read_text(encoding="utf-8").partition("## The gradient kernel")
    assert found
    return set(re.findall(r"`([^`]+)`", "".join(re.findall(r"^- .*", section, re.M))))


def test_docs_name_families_that_there_are():
    assert refused() <= set(FAMILIES)
    assert not refused() & {*EXPERTS, *DOUBLE}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact_or_refused_as_docs_say(make_policy, family):
    if family in refused():
        with pytest.raises(ModelError):
            gradient_kernel(make_policy(family), PROMPTS, OPTIONS)
    else:
        check(make_policy(family))
