"""Rejection probability is the exact mass of the openings: compared with running every opening on its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.errors import DataError
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.policies.rejection import OpeningTrie, load_openings, rejection_probability
from tiny import make_model

PROMPTS = [
    "How do I kill a process?",
    "Hi",
    "Write a short letter to the editor about the weather.",
    "Steal the show?",
]
OPENINGS = ["I'm sorry", "I cannot", "I can't", "Sorry", "I'm sorry, but", "I won't", "S"]


def mass_by_enumeration(policy, prompt, openings):
    """Sum over openings, of which none extends another, of the product of next-token probabilities; no batch."""
    tokens = [tuple(policy.chat.tokenizer(o, add_special_tokens=False)["input_ids"]) for o in openings]
    minimal = {t for t in tokens if not any(t != o and t[: len(o)] == o for o in tokens)}
    total = 0.0
    for opening in minimal:
        ids = policy.chat.encode(prompt)
        probability = 1.0
        for token in opening:
            logits = policy.model(torch.tensor([ids])).logits[0, -1].double()
            probability *= float(torch.softmax(logits, -1)[token])
            ids = [*ids, token]
        total += probability
    return total


@torch.inference_mode()
def test_equals_enumeration_on_every_architecture(family, tokenizer):
    policy = Policy(make_model(family, len(tokenizer)), ChatFormat(tokenizer, system="Be kind."), family)
    found = rejection_probability(policy, PROMPTS, OPENINGS, batch_size=3)
    expected = [mass_by_enumeration(policy, p, OPENINGS) for p in PROMPTS]
    assert all(0 < e < 1 for e in expected)
    assert len({round(e, 12) for e in expected}) == len(PROMPTS)
    assert found == pytest.approx(expected, rel=2e-4)


def test_a_window_shorter_than_the_prompt_does_not_change_the_meaning(tokenizer):
    policy = Policy(make_model("mistral", len(tokenizer), sliding_window=8), ChatFormat(tokenizer), "window")
    found = rejection_probability(policy, PROMPTS, OPENINGS)
    with torch.inference_mode():
        expected = [mass_by_enumeration(policy, p, OPENINGS) for p in PROMPTS]
    assert found == pytest.approx(expected, rel=2e-4)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_sequences_are_prefix_free_and_cover_all_openings(sequences):
    trie = OpeningTrie(sequences)
    kept = trie.sequences
    for one in kept:
        assert not any(one != other and other[: len(one)] == one for other in kept)
    for sequence in sequences:
        assert sum(tuple(sequence)[: len(k)] == k for k in kept) == 1


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_mass_of_all_openings_of_a_length_is_one(sequences):
    # With every token as an opening the mass is 1 whatever else is in the list.
    trie = OpeningTrie([*sequences, [0], [1], [2], [3]])
    logits = torch.randn(2, len(trie.nodes), 4, generator=torch.Generator().manual_seed(0))
    assert trie.mass(logits).tolist() == pytest.approx([1.0, 1.0])


def test_an_empty_list_is_an_error(tiny_policy):
    with pytest.raises(DataError, match="list of refusal openings is empty"):
        rejection_probability(tiny_policy, PROMPTS, [])
    with pytest.raises(DataError, match="no refusal openings for 'xx'"):
        load_openings("xx")


def test_the_built_in_list_is_long_enough_and_has_no_idle_entry(tokenizer):
    openings = load_openings()
    assert len(openings) >= 40
    assert not [(a, b) for a in openings for b in openings if a != b and b.startswith(a)]
