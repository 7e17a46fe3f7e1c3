"""A shared beginning is computed once and changes nothing; where it would, it is not shared."""

import pytest
import torch
import transformers

from discernment.models.chat import ChatFormat
from discernment.models.prefix import fits_window, prefix_cache
from discernment.policies.policy import Policy
from tiny import make_model

SYSTEM = "Write a short letter to the editor about the weather, then wait."
PROMPTS = [
    "How do I kill a process?",
    "Hi",
    "Sure, mix flour and water.",
    "Is 7 more than 3?",
    "zebra zebra zebra zebra zebra zebra zebra",
]
CAP = 6


def talks_at_length(family, tokenizer, **changes):
    model = make_model(family, len(tokenizer), **changes)
    return Policy(model, ChatFormat(tokenizer, system=SYSTEM), family)


def embedded_tokens(model, work):
    """Positions that the model was run on, prompt by prompt."""
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].numel())
    )
    try:
        return work(), sum(seen)
    finally:
        hook.remove()


def test_replies_are_those_of_each_prompt_alone_at_less_cost(family, tokenizer):
    policy = talks_at_length(family, tokenizer)
    encoded = policy.encode(PROMPTS)
    alone = [policy.generate([ids], CAP)[0] for ids in encoded]
    together, tokens = embedded_tokens(policy.model, lambda: policy.generate(encoded, CAP))
    assert together == alone
    assert len({c.text for c in together}) > 1
    assert tokens < len(PROMPTS) * max(map(len, encoded))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_a_sliding_window_is_never_cut_differently(family, tokenizer):
    policy = talks_at_length(family, tokenizer, sliding_window=24)
    encoded = policy.encode(PROMPTS)
    assert min(map(len, encoded)) > 24
    assert not fits_window(policy.model, 24)
    together, tokens = embedded_tokens(policy.model, lambda: policy.generate(encoded, CAP))
    assert together == [policy.generate([ids], CAP)[0] for ids in encoded]
    assert tokens >= len(PROMPTS) * max(map(len, encoded))


def test_a_window_by_another_name_is_one(tokenizer):
    sizes = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    }
    config = transformers.GPTNeoConfig(vocab_size=len(tokenizer), eos_token_id=2, window_size=24, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert not fits_window(model, 24)
    assert fits_window(model, 23)
    policy = Policy(model, ChatFormat(tokenizer, system=SYSTEM), "gpt_neo")
    encoded = policy.encode(PROMPTS)
    assert min(map(len, encoded)) > 24
    assert policy.generate(encoded, CAP) == [policy.generate([ids], CAP)[0] for ids in encoded]


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("MambaConfig", {"state_size": 4}),
        (
            "Lfm2Config",
            {"num_attention_heads": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
        ),
    ],
)
def test_a_recurrent_state_is_not_shared(config, sizes, tokenizer):
    made = getattr(transformers, config)(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = Policy(
        transformers.AutoModelForCausalLM.from_config(made).eval(),
        ChatFormat(tokenizer, system=SYSTEM),
        config,
    )
    encoded = policy.encode(PROMPTS)
    with torch.inference_mode():
        assert prefix_cache(policy.model, policy.batch([encoded[0][:10]])) is None
    _, tokens = embedded_tokens(policy.model, lambda: policy.generate(encoded, 1))
    assert tokens >= len(PROMPTS) * max(map(len, encoded))
