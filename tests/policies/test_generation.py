"""Replies are greedy whatever a model's generation_config.json asks for; only its end tokens are heard."""

import contextlib
import json
import logging

import pytest
import torch
from transformers import GenerationConfig

from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from logs import own_messages
from rules import Pushed
from tiny import make_model

PROMPTS = ["How do I kill a Python process?", "Hi", "Write a short letter to the editor."]
CAP = 10
END = 5
"""Tokens after which the first reply ends."""


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model whose own configuration ends the first reply early, by a token that is no end to the tokenizer."""
    made = make_model("llama", len(tokenizer), seed=3)
    made.generation_config = GenerationConfig()
    [[*_, end]] = loop(Policy(made, ChatFormat(tokenizer), "tiny"), PROMPTS[:1], cap=END)
    made.generation_config = GenerationConfig(eos_token_id=[end])
    return made


@pytest.fixture
def policy(model, tokenizer):
    own = model.generation_config
    yield Policy(model, ChatFormat(tokenizer), "tiny")
    model.generation_config = own


def loop(policy, prompts, cap=CAP):
    """Replies by whole sequences, token by token, without a cache or a batch: `[prompts][tokens]`."""
    own = policy.model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    ends = {policy.chat.end_of_turn, policy.chat.tokenizer.eos_token_id, *own}
    found = []
    for prompt in policy.encode(prompts):
        reply = []
        while len(reply) < cap and not ends & set(reply):
            rows = [[*context, *reply] for context in (prompt, *prompt.others)]
            with torch.inference_mode():
                logits = torch.stack([policy.model(torch.tensor([ids])).logits[0, -1] for ids in rows])
            if policy.rule is not None:
                logits = policy.rule.combine(logits[:, None], len(reply))
            reply.append(int(logits[0].argmax()))
        found.append(tuple(reply))
    return found


def said(policy, prompts=PROMPTS, **options):
    return [c.ids for c in policy.generate(policy.encode(prompts), CAP, **options)]


SAMPLED = {"do_sample": True, "temperature": 9.0}
FIRST, SECOND, OTHER = -1, -2, -3
"""Stand for the first token of the first reply, its second one, and one that is not said."""

HEARD = {
    "do_sample": {"do_sample": True},
    "temperature": {"do_sample": True, "temperature": 5.0},
    "top_k": {**SAMPLED, "top_k": 3},
    "top_p": {**SAMPLED, "top_p": 0.99},
    "min_p": {**SAMPLED, "min_p": 0.001},
    "top_h": {**SAMPLED, "top_h": 0.9},
    "typical_p": {**SAMPLED, "typical_p": 0.9},
    "epsilon_cutoff": {**SAMPLED, "epsilon_cutoff": 0.0001},
    "eta_cutoff": {**SAMPLED, "eta_cutoff": 0.0001},
    "repetition_penalty": {"repetition_penalty": 9.0},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 9.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "min_length": {"min_length": 500},
    "min_new_tokens": {"min_new_tokens": CAP},
    "max_time": {"max_time": 1e-9},
    "stop_strings": {"stop_strings": ["e"]},
    "num_beams": {"num_beams": 4},
    "num_return_sequences": {"num_beams": 4, "num_return_sequences": 3},
    "early_stopping": {"num_beams": 4, "early_stopping": True},
    "length_penalty": {"num_beams": 4, "length_penalty": -9.0},
    "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "return_dict_in_generate": {"return_dict_in_generate": True},
    "output_scores": {"return_dict_in_generate": True, "output_scores": True},
    "output_attentions": {"return_dict_in_generate": True, "output_attentions": True},
    "output_hidden_states": {"return_dict_in_generate": True, "output_hidden_states": True},
    "bad_words_ids": {"bad_words_ids": [[FIRST]]},
    "suppress_tokens": {"suppress_tokens": [SECOND]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [FIRST]},
    "sequence_bias": {"sequence_bias": [[[FIRST], -90.0]]},
    "forced_eos_token_id": {"forced_eos_token_id": OTHER},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [1, 9.0]},
    "guidance_scale": {"guidance_scale": 9.0},
    "watermarking_config": {"watermarking_config": {"bias": 90.0, "greenlist_ratio": 0.1}},
    "token_healing": {"token_healing": True},
    "penalty_alpha": {"penalty_alpha": 0.9, "top_k": 4},
    "dola_layers": {"dola_layers": "high"},
    "constraints": {"num_beams": 2, "constraints": [[OTHER]]},
    "force_words_ids": {"num_beams": 2, "force_words_ids": [[OTHER]]},
    "use_mtp": {"use_mtp": True},
}
"""Settings under which transformers says something else, or ends in a traceback, by the key that they are about."""

WITHOUT_EFFECT = {
    "max_length": {"max_length": 3},
    "max_new_tokens": {"max_new_tokens": 1},
    "forced_bos_token_id": {"forced_bos_token_id": OTHER},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "assistant_early_exit": {"assistant_early_exit": 2},
    "cache_implementation": {"cache_implementation": "static"},
    "use_cache": {"use_cache": False},
    "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "low_memory": {"low_memory": True},
    "prefill_chunk_size": {"prefill_chunk_size": 2},
    "not_a_key": {"not_a_key": 1},
}
"""Settings that a greedy reply to one prompt at a time does not show."""


def configured(policy, folder, settings):
    """Give the model a configuration from a file, its end tokens as they were."""
    [first, second, *_], *_ = loop(policy, PROMPTS)
    text = json.dumps({**settings, "eos_token_id": policy.model.generation_config.eos_token_id})
    for stands, token in ((FIRST, first), (SECOND, second), (OTHER, min({20, 21, 22} - {first, second}))):
        text = text.replace(f"[{stands}]", f"[{token}]").replace(f": {stands}", f": {token}")
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    policy.model.generation_config = GenerationConfig.from_pretrained(folder)
    return policy


def heard(policy):
    """What `generate` of transformers says by itself, prompt by prompt."""
    torch.manual_seed(0)
    found = []
    for ids in policy.encode(PROMPTS):
        output = policy.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pad_token_id=policy.chat.tokenizer.pad_token_id,
            max_new_tokens=CAP,
        )
        found.append(tuple(output[0, len(ids) :].tolist()))
    return found


def test_the_replies_to_compare_with_are_of_several_kinds(policy):
    found = loop(policy, PROMPTS)
    assert len(found[0]) == END
    assert len(set(found)) == len(PROMPTS)
    assert CAP in map(len, found)
    assert heard(policy) == found
    assert len(HEARD) >= 30


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("key", [*HEARD, *WITHOUT_EFFECT])
@pytest.mark.thinned(4)
def test_a_key_of_the_generation_configuration_changes_no_reply(policy, tmp_path, key):
    expected = loop(policy, PROMPTS)
    configured(policy, tmp_path, {**HEARD, **WITHOUT_EFFECT}[key])
    own = policy.model.generation_config
    before = own.to_dict()
    if key in HEARD:
        with contextlib.suppress(TypeError, ValueError):  # a traceback where replies are asked for
            assert heard(policy) != expected
    assert said(policy) == expected
    assert [said(policy, [prompt])[0] for prompt in PROMPTS] == expected
    assert policy.model.generation_config is own
    assert own.to_dict() == before


@pytest.mark.parametrize("key", ["bad_words_ids", "num_beams", "no_repeat_ngram_size"])
def test_nor_does_it_under_a_decoding_rule(policy, tmp_path, key):
    policy.rule = Pushed()
    expected = loop(policy, PROMPTS)
    assert said(policy) == expected
    policy.rule = None
    assert loop(policy, PROMPTS) != expected
    configured(policy, tmp_path, HEARD[key])
    policy.rule = Pushed()
    assert said(policy) == expected


@pytest.mark.parametrize("key", ["top_k", "repetition_penalty", "min_new_tokens", "num_return_sequences"])
def test_nor_what_is_drawn(policy, tmp_path, key):
    expected = said(policy, temperature=1.5, seed=4)
    assert expected != said(policy, temperature=1.5, seed=5)
    assert expected != loop(policy, PROMPTS)
    configured(policy, tmp_path, HEARD[key])
    assert said(policy, temperature=1.5, seed=4) == expected


def test_a_whole_file_of_them_is_set_aside_and_named_once(model_folder, caplog):
    folder = model_folder()
    plain = Policy.load(str(folder))
    expected = loop(plain, PROMPTS)
    settings = {
        "eos_token_id": plain.model.generation_config.eos_token_id,
        "bos_token_id": 1,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 1.0,
        "repetition_penalty": 1.3,
        "min_new_tokens": 9,
        "bad_words_ids": [[expected[0][0]]],
        "house_style": "brief",
    }
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    policy = Policy.load(str(folder), name="chatty")
    with caplog.at_level(logging.INFO, logger="discernment"):
        assert said(policy) == said(policy) == expected
    [told] = own_messages(caplog)
    assert told == (
        "The generation configuration of chatty is set aside (bad_words_ids, do_sample, house_style, min_new_tokens, "
        "repetition_penalty, temperature); its end tokens are kept."
    )


def test_nothing_is_said_where_there_is_nothing_to_set_aside(policy, caplog):
    with caplog.at_level(logging.INFO, logger="discernment"):
        assert said(policy)
    assert not own_messages(caplog)


def test_what_is_put_out_beside_the_tokens_is_not_told(policy, caplog):
    policy.model.generation_config.output_attentions = False
    policy.model.generation_config.output_scores = True
    with caplog.at_level(logging.INFO, logger="discernment"):
        assert said(policy)
    assert not own_messages(caplog)


def test_the_model_has_its_own_configuration_again_after_a_failure(policy):
    own = policy.model.generation_config
    with pytest.raises(IndexError):
        policy.generate([[1, 2, 10**6]], CAP)
    assert policy.model.generation_config is own


def test_a_generate_that_a_repository_put_in_its_place_is_not_used(policy):
    expected = said(policy)
    policy.model.generate = lambda **given: given["input_ids"]
    try:
        assert said(policy) == expected
    finally:
        del policy.model.generate
