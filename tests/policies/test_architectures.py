"""Numbers of every architecture are those of each prompt alone, or refused in words; the table in docs says which."""

import logging
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from architectures import (
    FAMILIES,
    LEFT_OUT,
    logits_alone,
    make_tiny,
    mass_alone,
    reply_alone,
    state_alone,
)
from discernment.diagnosis.separability import layer_states
from discernment.errors import ModelError
from discernment.models.batch import pad
from discernment.models.chat import ChatFormat
from discernment.models.cut import CutModel
from discernment.policies.policy import Policy
from discernment.policies.rejection import OpeningTrie, rejection_probability
from logs import own_messages
from rules import Pushed
from tiny import make_prompts

DOCS = Path(__file__).parents[2] / "docs" / "architectures.md"
PROMPTS = [
    "How do I kill a process?",
    "Hi",
    "Write a short letter to the editor about the weather.",
    "Steal the show?",
]
OPENINGS = ["I'm sorry", "I cannot", "S", "Sorry"]
CAP, LAYER, EXACT = 4, 3, 2e-4
FAST = [
    "llama", "bloom", "falcon (alibi)", "mpt", "mamba2", "recurrent_gemma", "rwkv", "jamba", "qwen3_next",
    "gemma3_text", "cohere2", "exaone4", "mixtral", "roberta",
]  # fmt: skip
REFUSALS = {
    "its numbers depend on what stands beside or behind a token": "cannot be trusted",
    "no single list of layers": "are not found",
    "several states a token": "with one state a token",
}


def table():
    """The rows of the table in docs: refusal probability, replies and cut states by family."""
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", DOCS.read_text(encoding="utf-8"), re.M)
    return {family: tuple(results) for family, *results in rows}


def policy_of(model, tokenizer, system="Be kind and brief to everyone."):
    return Policy(model, ChatFormat(tokenizer, system=system), "tiny")


def relative(found, expected):
    assert expected.isfinite().all()
    return float((found - expected).abs().max() / expected.abs().max())


def check_rejection(policy, prompts=PROMPTS):
    openings = [list(o) for o in OpeningTrie.from_openings(OPENINGS, policy.chat).sequences]
    expected = torch.tensor([mass_alone(policy.model, ids, openings) for ids in policy.encode(prompts)])
    assert (expected > 0).all()
    found = torch.tensor(rejection_probability(policy, prompts, OPENINGS, batch_size=3))
    assert ((found - expected).abs() / expected).max() < EXACT


def check_replies(policy, prompts=PROMPTS):
    encoded = policy.encode(prompts)
    ends = {policy.chat.tokenizer.eos_token_id, policy.chat.end_of_turn, *policy._own_ends()}
    expected = [reply_alone(policy.model, ids, CAP, ends) for ids in encoded]
    assert [reply.ids for reply in policy.generate(encoded, CAP)] == expected
    next_logits = torch.stack([logits_alone(policy.model, ids)[-1] for ids in encoded])
    assert relative(policy.next_token_logits(encoded), next_logits) < EXACT
    given = policy.reply_logits(encoded, expected)
    for ids, reply, logits in zip(encoded, expected, given, strict=True):
        alone = logits_alone(policy.model, [*ids, *reply])[len(ids) - 1 : -1]
        assert relative(logits, alone) < EXACT


def check_states(policy, prompts=PROMPTS):
    encoded = policy.encode(prompts)
    with torch.no_grad(), CutModel(policy.model, LAYER) as cut:
        found = cut(*pad(encoded, 0, "right"))
    for ids, states in zip(encoded, found, strict=True):
        assert relative(states[: len(ids)], state_alone(policy.model, LAYER, ids)) < EXACT


def result(check, policy, caplog):
    """What the table says of one number of a family."""
    caplog.clear()
    try:
        with caplog.at_level(logging.WARNING, "discernment"):
            check(policy)
    except ModelError as error:
        assert str(error).endswith(".")
        return "refused: " + next(short for short, words in REFUSALS.items() if words in str(error))
    told = [record for record in caplog.records if "it is run in" in record.message]
    assert len(told) == len({record.message for record in told})
    return "exact, the safe way" if told else "exact"


def results(family, tokenizer, caplog):
    model = make_tiny(family, len(tokenizer))
    checks = (check_rejection, check_replies, check_states)
    return tuple(result(check, policy_of(model, tokenizer), caplog) for check in checks)


@pytest.mark.parametrize("family", FAST)
def test_a_family_is_as_the_table_says(family, tokenizer, caplog):
    assert results(family, tokenizer, caplog) == table()[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in FAST])
def test_every_other_family_is_as_the_table_says(family, tokenizer, caplog):
    assert results(family, tokenizer, caplog) == table()[family]


def test_the_table_lists_what_is_tested():
    listed = table()
    assert list(listed) == FAMILIES
    assert len(listed) >= 40
    assert set(FAST) <= set(listed)
    assert not set(LEFT_OUT) & set(listed)
    words = DOCS.read_text(encoding="utf-8")
    assert not [family for family in LEFT_OUT if f"`{family}`" not in words]


@pytest.mark.parametrize("family", ["gemma3_text", "cohere2", "exaone4"])
def test_eager_attention_with_a_window_gives_no_nan(family, tokenizer, caplog):
    # Masks of float64 overflow in a softmax of float32 where a token of the padding sees nothing.
    model = make_tiny(family, len(tokenizer), sliding_window=24, attn_implementation="eager").double()
    policy = policy_of(model, tokenizer)
    prompts = [*PROMPTS[:2], "Mix flour, water, salt and yeast, then wait a while. " * 2]
    lengths = [len(ids) for ids in policy.encode(prompts)]
    assert max(lengths) > min(lengths) + 24
    batch = pad(policy.encode(prompts), 0, "right")
    assert model(**batch._asdict(), use_cache=False).logits.isnan().any()
    check_rejection(policy, prompts)
    check_replies(policy, prompts)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "discernment"):
        check_states(policy, prompts)
    assert own_messages(caplog) == [
        "Padding gives states that are not finite; it is run in batches of one length."
    ]
    states = layer_states(policy, make_prompts(2))
    for n, ids in enumerate(policy.encode(make_prompts(2).texts)):
        assert relative(states[LAYER - 1, n], state_alone(model, LAYER, ids)[-1].float()) < EXACT
    with CutModel(model, LAYER) as cut:
        cut(*batch)[batch.attention_mask.bool()].square().sum().backward()
        gradients = [p.grad for p in cut.layers.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("family", ["llama", "mamba2", "recurrent_gemma", "mpt", "bert"])
def test_states_of_layers_are_those_of_each_prompt_alone(family, tokenizer):
    policy = policy_of(make_tiny(family, len(tokenizer)), tokenizer)
    prompts = make_prompts(3)
    states = layer_states(policy, prompts, batch_size=4)
    for n, ids in enumerate(policy.encode(prompts.texts)):
        for layer in (1, LAYER):
            assert relative(states[layer - 1, n], state_alone(policy.model, layer, ids)[-1]) < EXACT


@pytest.mark.parametrize("family", ["llama", "mpt", "mamba2"])
def test_half_precision_is_told_from_a_difference(family, tokenizer, caplog):
    policy = policy_of(make_tiny(family, len(tokenizer)).bfloat16(), tokenizer)
    with caplog.at_level(logging.WARNING, "discernment"):
        rejection_probability(policy, PROMPTS, OPENINGS)
        policy.generate(policy.encode(PROMPTS), 1)
    assert bool(own_messages(caplog)) == (family != "llama")


@pytest.mark.parametrize("family", ["llama", "recurrent_gemma", "bart"])
def test_a_mixture_of_contexts_is_read_as_each_alone(family, tokenizer):
    policy = policy_of(make_tiny(family, len(tokenizer)), tokenizer)
    policy.rule = Pushed(strength=0.5)
    encoded = policy.encode(PROMPTS)

    def mixed(ids, reply):
        rows = [logits_alone(policy.model, [*context, *reply])[-1] for context in (ids, *ids.others)]
        return policy.rule.combine(torch.stack(rows)[:, None], len(reply))[0]

    assert all(len(ids.others[0]) != len(ids) for ids in encoded)
    found = policy.next_token_logits(encoded)
    for ids, logits, reply in zip(encoded, found, policy.generate(encoded, 2), strict=True):
        assert relative(logits, mixed(ids, [])) < EXACT
        for step, token in enumerate(reply.ids):
            assert int(mixed(ids, reply.ids[:step]).argmax()) == token


def test_a_policy_that_passes_is_left_as_it_was(tokenizer):
    policy = policy_of(make_tiny("llama", len(tokenizer)), tokenizer)
    policy.model.train()
    policy.model.model.layers[0].eval()
    training = [module.training for module in policy.model.modules()]
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    random = torch.get_rng_state()
    rejection_probability(policy, PROMPTS, OPENINGS)
    policy.generate(policy.encode(PROMPTS), 1)
    assert torch.equal(random, torch.get_rng_state())
    assert [module.training for module in policy.model.modules()] == training
    assert all(torch.equal(before[name], value) for name, value in policy.model.state_dict().items())


def test_where_the_safe_way_differs_too_it_is_refused_in_one_sentence(tokenizer):
    policy = policy_of(make_tiny("llama", len(tokenizer)), tokenizer)
    whole = policy.model.lm_head.forward
    policy.model.lm_head.forward = lambda hidden: whole(hidden) * len(hidden)  # looks at its neighbours
    for speak in (
        lambda: policy.next_token_logits(policy.encode(PROMPTS)),
        lambda: policy.generate(policy.encode(PROMPTS), 1),
        lambda: rejection_probability(policy, PROMPTS, OPENINGS),
    ):
        with pytest.raises(
            ModelError, match=r"^LlamaForCausalLM gives other .* cannot be trusted; use another"
        ):
            speak()


MODELS = {}
WORDS = st.lists(st.sampled_from(["How", "do", "I", "kill", "a", "process", "bread", "?"]), max_size=12).map(
    " ".join
)


@given(
    family=st.sampled_from(["llama", "mpt", "mamba2", "recurrent_gemma", "gemma3_text"]),
    prompts=st.lists(WORDS, min_size=1, max_size=5),
    system=st.none() | WORDS,
    batch_size=st.integers(1, 4),
    side=st.sampled_from(["left", "right"]),
)
@settings(max_examples=12, deadline=None)
def test_numbers_are_those_of_each_prompt_alone(tokenizer, family, prompts, system, batch_size, side):
    if family not in MODELS:
        MODELS[family] = make_tiny(family, len(tokenizer))
    model = MODELS[family]
    policy = policy_of(model, tokenizer, system or None)
    encoded = policy.encode(prompts)
    tokens = [list(o) for o in OpeningTrie.from_openings(OPENINGS[:1], policy.chat).sequences]
    found = rejection_probability(policy, prompts, OPENINGS[:1], batch_size=batch_size)
    expected = [mass_alone(model, ids, tokens) for ids in encoded]
    assert all(expected)
    assert found == pytest.approx(expected, rel=EXACT)
    if side == "left":
        logits = policy.next_token_logits(encoded)
        for ids, row in zip(encoded, logits, strict=True):
            assert relative(row, logits_alone(model, ids)[-1]) < EXACT
        return
    with torch.no_grad(), CutModel(model, 2) as cut:
        states = cut(*pad(encoded, 0, "right"))
    for ids, row in zip(encoded, states, strict=True):
        assert relative(row[: len(ids)], state_alone(model, 2, ids)) < EXACT
