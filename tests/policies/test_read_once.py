"""Replies and rejection probabilities of one pass are those of each prompt by itself; replies that end leave the batch."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.policies.rejection import OpeningTrie, read_once, rejection_probability
from rules import Pushed, PushedSlowly, Shifted, ShiftedSome, Unchanged
from tiny import CHAT_TEMPLATE, FAMILIES, make_model

OPENINGS = ["I'm sorry", "I cannot", "I can't", "Sorry", "I won't", "S"]
SYSTEM = "Write a short letter to the editor about the weather, then wait."
WORDS = [
    "How",
    "do",
    "I",
    "kill",
    "a",
    "Python",
    "process",
    "Hi",
    "Write",
    "letter",
    "steal",
    "the",
    "show",
    "zebra",
    "7",
    "weather",
    "?",
    "!",
]
CAP = 9
PROMPTS = ["How do I kill a process?", "Hi", "Sure, mix flour and water.", "Is 7 more than 3?", "zebra " * 7]
THOUGHT = "{% if m['role'] == 'assistant' %}<s>\\n<s>\\n{% endif %}"
LEAD = CHAT_TEMPLATE.replace("{{ m['content'] }}", THOUGHT + "{{ m['content'] }}")
"""A template that writes a closed thought before every reply, which the generation prompt does not."""

_models = {}


def policy_of(family, tokenizer, *, system=None, rule=None, ends=0, **changes):
    """A policy whose replies end early by some tokens, of which there are `ends` beside the tokenizer's own."""
    key = (family, len(tokenizer), tuple(changes.items()))
    if key not in _models:
        _models[key] = make_model(family, len(tokenizer), **changes)
    model = _models[key]
    model.generation_config.eos_token_id = [2, *range(10, 10 + ends)]
    return Policy(model, ChatFormat(tokenizer, system=system), family, rule)


def once(policy, prompts, cap=CAP, **how):
    masses, begun = read_once(policy, prompts, OpeningTrie.from_openings(OPENINGS, policy.chat), cap)
    return policy.generate(policy.encode(prompts), cap, begun=begun, **how), masses, begun


def apart(policy, prompts, cap=CAP, **how):
    replies = [policy.generate(policy.encode([prompt]), cap, **how)[0] for prompt in prompts]
    return replies, [rejection_probability(policy, [prompt], OPENINGS)[0] for prompt in prompts]


def tokens_read(model, work):
    """Rows of every pass of the model, times its tokens, and what the work gives."""
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _m, a, _o: shapes.append(tuple(a[0].shape))
    )
    try:
        return shapes, work()
    finally:
        hook.remove()


@given(
    family=st.sampled_from(list(FAMILIES)),
    system=st.sampled_from([None, SYSTEM]),
    prompts=st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=7
    ),
    cap=st.integers(1, 8),
    ends=st.sampled_from([0, 60]),
)
@settings(max_examples=40, deadline=None)
def test_they_are_those_of_each_prompt_alone(tokenizer, family, system, prompts, cap, ends):
    policy = policy_of(family, tokenizer, system=system, ends=ends)
    replies, masses, begun = once(policy, prompts, cap)
    expected, alone = apart(policy, prompts, cap)
    assert begun is not None
    assert replies == expected
    assert masses == pytest.approx(alone, rel=1e-5, abs=1e-12)
    assert all(0 < mass < 1 for mass in masses)


def test_the_prompts_are_read_once(family, tokenizer):
    policy = policy_of(family, tokenizer, system=SYSTEM)
    once(policy, PROMPTS)  # the model's self checks
    shapes, _ = tokens_read(policy.model, lambda: once(policy, PROMPTS))
    (one, shared), (rows, behind), *steps = shapes
    trie = OpeningTrie.from_openings(OPENINGS, policy.chat)
    longest = max(map(len, policy.encode(PROMPTS)))
    assert (one, rows, shared + behind) == (1, len(PROMPTS), longest + len(trie.nodes) - 1)
    assert steps
    assert {tokens for _, tokens in steps} == {1}


@pytest.mark.parametrize(
    "rule", [Unchanged(), Pushed(), PushedSlowly(), Shifted(), ShiftedSome()], ids=lambda r: r.name
)
@pytest.mark.parametrize("how", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 3}], ids=["greedy", "drawn"])
def test_rules_act_in_both(rule, how, tokenizer):
    policy = policy_of("llama", tokenizer, system=SYSTEM, rule=rule, ends=60)
    replies, masses, begun = once(policy, PROMPTS, **how)
    expected, alone = apart(policy, PROMPTS, **how)
    assert (begun is None) == isinstance(rule, PushedSlowly)
    assert replies == expected
    assert masses == pytest.approx(alone, rel=1e-4)
    bare = policy_of("llama", tokenizer, system=SYSTEM, ends=60)
    assert (once(bare, PROMPTS, **how)[1] == pytest.approx(masses)) == (rule.name == "unchanged")


@pytest.mark.parametrize("rule", [None, Pushed(), ShiftedSome()], ids=["none", "pushed", "shifted_some"])
def test_openings_behind_what_the_template_writes_before_a_reply(tokenizer, rule):
    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = LEAD
    policy = policy_of("qwen3", thinking, system=SYSTEM, rule=rule)
    assert len(policy.chat.lead) >= 4
    replies, masses, begun = once(policy, PROMPTS)
    expected, alone = apart(policy, PROMPTS)
    assert begun is not None
    assert replies == expected
    assert masses == pytest.approx(alone, rel=1e-5)
    bare = policy_of("qwen3", tokenizer, system=SYSTEM, rule=rule)
    assert once(bare, PROMPTS)[1] != pytest.approx(masses, rel=1e-2)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_window_that_cuts_means_two_passes(family, tokenizer):
    policy = policy_of(family, tokenizer, system=SYSTEM, sliding_window=24)
    replies, masses, begun = once(policy, PROMPTS)
    expected, alone = apart(policy, PROMPTS)
    assert begun is None
    assert replies == expected
    assert masses == pytest.approx(alone, rel=1e-4)


def test_several_draws_go_on_from_one_reading(tokenizer):
    policy = policy_of("llama", tokenizer, system=SYSTEM)
    first, _, begun = once(policy, PROMPTS, temperature=1.2, seed=1)
    second = policy.generate(policy.encode(PROMPTS), CAP, temperature=1.2, seed=2, begun=begun)
    again = policy.generate(policy.encode(PROMPTS), CAP, temperature=1.2, seed=1, begun=begun)
    assert first == again
    assert second == apart(policy, PROMPTS, temperature=1.2, seed=2)[0]
    assert first != second


@pytest.mark.parametrize("rule", [None, Pushed(), Shifted(strength=0.3)], ids=["none", "pushed", "shifted"])
def test_replies_that_have_ended_leave_the_batch(tokenizer, rule):
    policy = policy_of("llama", tokenizer, system=SYSTEM, rule=rule)
    said = [reply.ids for reply in apart(policy, PROMPTS, 24)[0]]
    policy.model.generation_config.eos_token_id = [
        2,
        *(ids[at] for ids, at in zip(said, (2, 5, 8), strict=False)),
    ]
    expected = apart(policy, PROMPTS, 24)[0]
    lengths = [reply.tokens for reply in expected]
    assert len(set(lengths)) > 2
    shapes, (replies, *_) = tokens_read(policy.model, lambda: once(policy, PROMPTS, 24))
    assert replies == expected
    # As soon as one reply of the batch in four has ended, those that have are not run any more.
    running, rows = lengths, []
    for step in range(1, max(lengths) + 1):
        rows.append(len(running) * (2 if isinstance(rule, Pushed) else 1))
        going = [length for length in running if length > step]
        running = going if 4 * (len(running) - len(going)) >= len(running) else running
    assert [found for found, tokens in shapes if tokens == 1] == rows
    assert rows[-1] < rows[0]


@torch.inference_mode()
def test_what_was_read_is_left_as_it_is(tokenizer):
    policy = policy_of("llama", tokenizer, system=SYSTEM)
    _, _, begun = once(policy, PROMPTS)
    longest = max(map(len, policy.encode(PROMPTS)))
    assert begun.batch.input_ids.shape == (len(PROMPTS), longest)
    assert begun.cache.get_seq_length() == longest - 1
    lengths = begun.batch.attention_mask.sum(1).tolist()
    assert lengths == list(map(len, policy.encode(PROMPTS)))
