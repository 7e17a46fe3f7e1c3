"""The gradient kernel where something is in the way: few bits, a template's lead, overflow, memory, what peft wraps."""

import copy
import weakref

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from brute_force import jacobian, kernel, unit_rows
from discernment.errors import DataError, ModelError
from discernment.kernel import backward, collect
from discernment.kernel.checks import check_repeats, check_same
from discernment.kernel.collect import Block
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.kernel.rows import OutputRows
from discernment.models.batch import Batch
from discernment.models.chat import ChatFormat
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from tiny import make_model

PROMPTS = ["How do I kill a Python process?", "Write a letter.", "What is the weather? Tell me more.", "Hi"]
QUICK = KernelOptions(k=2, rows="own", noise_floor=False)
WIDE = {"hidden_size": 64, "intermediate_size": 128}  # a block of 4-bit weights is 64 wide


@pytest.fixture
def make_policy(tokenizer):
    def make(family="llama", **changes):
        return Policy(make_model(family, len(tokenizer), **changes), ChatFormat(tokenizer), family)

    return make


def error(found, expected):
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


def by_autograd(policy, sequences, tokens, wanted=lambda name: True):
    size = policy.model.config.vocab_size
    pairs = zip(sequences, tokens, strict=True)
    return kernel([jacobian(policy.model, ids, unit_rows(rows, size), wanted) for ids, rows in pairs])


# ---------------------------------------------------------------------- weights


@pytest.fixture
def adapted(model_folder, tmp_path):
    """A folder of a model, and one of an adapter for it."""
    base = model_folder("llama", **WIDE)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = Policy.load(str(base)).model
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return str(base), str(tmp_path / "adapter")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_weights_in_few_bits_are_refused_and_adapters_beside_them_measured(adapted, bits):
    base, adapter = adapted
    policy = Policy.load(ModelSpec(model=base, adapter=adapter, quantization=bits, dtype="float32"), "tiny")
    with pytest.raises(ModelError, match=r"^The weights of tiny are quantised.*`parameters: lora`\.$"):
        gradient_kernel(policy, PROMPTS, QUICK)
    found = gradient_kernel(policy, PROMPTS, QUICK.model_copy(update={"parameters": "lora"}))
    weights = [p for name, p in policy.model.named_parameters() if "lora_" in name]
    jacobians = []
    for ids, tokens in zip(policy.encode(PROMPTS), found.tokens, strict=True):
        for parameter in weights:
            parameter.requires_grad_(True)
        logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1]
        rows = [torch.autograd.grad(logits[token], weights, retain_graph=True) for token in tokens]
        jacobians.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double())
    assert len(weights) == 16
    assert error(found.blocks, kernel(jacobians)) < 1e-4


def test_every_weight_that_is_measured_is_looked_at(make_policy):
    policy = make_policy()
    policy.model.model.layers[2].mlp.down_proj.half()
    with pytest.raises(ModelError, match=r"float16 weights \(model\.layers\.2\.mlp\.down_proj\.weight\)"):
        gradient_kernel(policy, PROMPTS, QUICK)


def test_nothing_to_measure_is_seen_before_the_model_runs(make_policy):
    policy = make_policy()
    ran = []
    policy.model.register_forward_hook(lambda *_: ran.append(True))
    with pytest.raises(ModelError, match=r"none of the parameters that were asked for \(lora\)"):
        gradient_kernel(policy, PROMPTS, KernelOptions(parameters="lora"))
    assert ran == []


# ---------------------------------------------------------------------- what the template writes before a reply


@pytest.fixture
def leading(tokenizer):
    """A chat format whose replies all begin with two marks."""
    changed = copy.deepcopy(tokenizer)
    said = "{% if m['role'] == 'assistant' %}<s>\n<s>\n{% endif %}{{ m['content'] }}"
    changed.chat_template = tokenizer.chat_template.replace("{{ m['content'] }}", said)
    return ChatFormat(changed)


def test_the_first_reply_token_stands_behind_the_lead(leading):
    policy = Policy(make_model("llama", 400), leading, "tiny")
    assert len(leading.lead) > 1
    found = gradient_kernel(policy, PROMPTS, KernelOptions(k=2, rows="own", batch_size=3), taps=[2])
    sequences = [[*ids, *leading.lead] for ids in policy.encode(PROMPTS)]
    for ids, tokens in zip(sequences, found.tokens, strict=True):
        likeliest = policy.next_token_logits([ids])[0].topk(2).indices.tolist()
        assert tokens == likeliest
    assert error(found.blocks, by_autograd(policy, sequences, found.tokens)) < 1e-5


def test_the_lead_takes_room_in_the_context(leading):
    longest = max(map(len, Policy(make_model("llama", 400), leading, "tiny").encode(PROMPTS)))
    room = longest + len(leading.lead)
    fits = Policy(make_model("llama", 400, max_position_embeddings=room), leading, "tiny")
    gradient_kernel(fits, PROMPTS, QUICK)
    short = Policy(make_model("llama", 400, max_position_embeddings=room - 1), leading, "tiny")
    with pytest.raises(DataError, match=f"can read {room - 1}"):
        gradient_kernel(short, PROMPTS, QUICK)


# ---------------------------------------------------------------------- values that are not finite


def test_a_prompt_whose_gradients_overflow_is_unscored(make_policy):
    """The square root of a norm without an epsilon has a slope of v^-1.5 / 2, 1e45 for a token of size 1e-15."""
    policy = make_policy(rms_norm_eps=0.0)
    plain = gradient_kernel(policy, [PROMPTS[p] for p in (0, 1, 3)], QUICK)
    encoded = policy.encode(PROMPTS)
    rare = min(set(encoded[2]) - {t for p in (0, 1, 3) for t in encoded[p]})
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[rare] *= 1e-14
    assert all(np.isfinite(rejection_probability(policy, PROMPTS)))
    for batch_size in (1, 4):
        options = QUICK.model_copy(update={"batch_size": batch_size, "noise_floor": True})
        found = gradient_kernel(policy, PROMPTS, options, taps=[2])
        assert found.unscored == {2: "its gradients in the model are not finite"}
        assert np.isnan(found.norms[2]).all() and np.isnan(found.norms[:, 2]).all()
        assert found.blocks[2].isnan().all() and found.taps[2].states[2].isnan().all()
        assert found.tokens[2] == []
        kept = np.ix_([0, 1, 3], [0, 1, 3])
        np.testing.assert_allclose(found.norms[kept], plain.norms, rtol=1e-5)
        assert found.noise_floor < 1e-5
    # The shortest prompt is the one that the model as a whole is compared with.
    longer = [" ".join([PROMPTS[0]] * times) for times in (3, 4)]
    assert len(encoded[2]) < min(map(len, policy.encode(longer)))
    assert list(gradient_kernel(policy, [*longer, PROMPTS[2]], QUICK).unscored) == [2]


def test_products_that_overflow_for_all_prompts_are_an_error(make_policy):
    policy = make_policy(tie_word_embeddings=False)
    with torch.no_grad():
        policy.model.model.norm.weight *= 1e20  # squares of 1e20 are beyond float32
    assert all(np.isfinite(rejection_probability(policy, PROMPTS)))
    with pytest.raises(ModelError, match="not finite for 4 of 4 prompts"):
        gradient_kernel(policy, PROMPTS, QUICK)


def test_an_error_that_is_not_a_number_is_one():
    nan, one = torch.full((1, 2, 3), torch.nan), torch.ones(1, 2, 3)
    model = torch.nn.Linear(1, 1)
    batch = Batch(torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long))
    block = Block([0], batch, [2], [1], [], [], one)
    check_repeats(model, block, one, one, 1)
    with pytest.raises(ModelError, match="Layer 1 of Linear gets more than the hidden states"):
        check_repeats(model, block, nan, one, 1)
    check_same(model, 1, one, one, [])
    with pytest.raises(ModelError, match="behind layer 1 of Linear gets more"):
        check_same(model, 1, nan, one, [])


# ---------------------------------------------------------------------- memory and rounding


@pytest.mark.parametrize("rows", ["own", "shared"])
def test_the_cotangents_are_made_one_by_one(make_policy, monkeypatch, rows):
    made, most = [], []
    cotangent = OutputRows.cotangent

    def watched(self, *given):
        most.append(sum(one() is not None for one in made))
        found = cotangent(self, *given)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(OutputRows, "cotangent", watched)
    replies = ["Sure, here is how to do it.", "No.", "It is fine today, and more.", "Hi"]
    gradient_kernel(make_policy(), PROMPTS, QUICK.model_copy(update={"rows": rows}), replies=replies)
    assert len(made) > 10
    assert max(most) <= 1


def test_the_noise_floor_sees_what_the_shared_beginning_does(make_policy, monkeypatch):
    policy = make_policy()
    monkeypatch.setattr(collect, "cheapest_way", lambda *sizes: "moved")  # one of those that use it
    assert gradient_kernel(policy, PROMPTS, KernelOptions(k=2)).noise_floor < 1e-5
    common = backward.common_prefix
    # A beginning that is not shared: its part of the gradients is then that of other inputs.
    monkeypatch.setattr(backward, "common_prefix", lambda rows: [*common(rows), 0, 0])
    assert gradient_kernel(policy, PROMPTS, KernelOptions(k=2)).noise_floor > 1e-3


# ---------------------------------------------------------------------- what peft wraps around the head


def test_a_head_that_is_trained_whole_is_measured(make_policy):
    policy = make_policy(tie_word_embeddings=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    wrapped = Policy(get_peft_model(policy.model, config), policy.chat, "tiny")
    with torch.no_grad():
        wrapped.model.get_output_embeddings().modules_to_save["default"].weight.mul_(1.5)
    found = gradient_kernel(wrapped, PROMPTS, QUICK)
    expected = by_autograd(wrapped, wrapped.encode(PROMPTS), found.tokens)
    assert error(found.blocks, expected) < 1e-5
    assert (found.traces[found.parts.index("head")] > 0).all()


def test_a_head_with_other_rows_of_some_tokens_is_named(make_policy):
    policy = make_policy(tie_word_embeddings=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"lm_head": [5, 6]})
    wrapped = Policy(get_peft_model(policy.model, config), policy.chat, "tiny")
    with pytest.raises(ModelError, match=r"head of .* is within a TrainableTokensWrapper.*merge the adapter"):
        gradient_kernel(wrapped, PROMPTS, QUICK)
