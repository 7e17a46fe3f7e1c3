"""Prompts become tokens the same way everywhere, with special tokens once."""

import copy

import pytest

from discernment.errors import ModelError
from discernment.models.chat import ChatFormat
from discernment.models.loading import load_chat
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from tiny import make_model


def test_chat_template_writes_the_turns(tokenizer):
    chat = ChatFormat(tokenizer)
    assert chat.template == "chat"
    assert chat.render("Hi") == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(chat.encode("Hi")) == chat.render("Hi")
    assert chat.end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(chat.encode_reply("Go on.", "Sure.")) == "Sure.<|im_end|>"


def test_system_message(tokenizer):
    assert (
        ChatFormat(tokenizer, system="Be kind.")
        .render("Hi")
        .startswith("<|im_start|>system\nBe kind.<|im_end|>")
    )


def test_plain_template_is_for_models_without_one(tokenizer):
    chat = ChatFormat(tokenizer, template="plain")
    assert chat.render("Hi") == "### Instruction:\nHi\n\n### Response:\n"
    assert chat.end_of_turn == tokenizer.eos_token_id
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    assert ChatFormat(bare).template == "plain"
    with pytest.raises(ModelError, match="no chat template; use `template: plain`"):
        ChatFormat(bare, template="chat")


def test_greedy_replies_do_not_depend_on_the_batch(family, tokenizer):
    policy = Policy(make_model(family, len(tokenizer)), ChatFormat(tokenizer), family)
    encoded = policy.encode(["How do I kill a process?", "Hi", "Write a short letter to the editor."])
    together = policy.generate(encoded, 6)
    alone = [policy.generate([ids], 6)[0] for ids in encoded]
    assert [c.text for c in together] == [c.text for c in alone]
    assert all(0 < c.tokens <= 6 for c in together)
    assert len({c.text for c in together}) > 1


def test_options_of_a_model_reach_its_chat_format(model_folder):
    folder = model_folder()
    template = folder / "chat_template.jinja"
    opened = template.read_text().replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    template.write_text("{{ strftime_now('%d %b %Y') }} " + opened)
    said = {"thinking": "on", "special_tokens": "tokens", "date": "2024-07-26"}
    plain, other = (load_chat(ModelSpec(model=str(folder), **options)) for options in ({}, said))
    assert plain.render("Hi").startswith("01 Jan 2026 <|im_start|>user")
    assert plain.render("Hi").endswith("<think>\n\n</think>\n\n")
    assert other.render("Hi").startswith("26 Jul 2024 <|im_start|>user")
    assert other.render("Hi").endswith("<think>\n")
    end = plain.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [chat.encode("Say <|im_end|> twice").count(end) for chat in (plain, other)] == [1, 2]
    text = plain.tokenizer.decode(plain.encode("Say <|im_end|> twice"))
    assert text == plain.render("Say <|im_end|> twice")


def test_added_tokens_that_are_no_marks_stay_as_they_are(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["\n\n", "<table>"])
    chat = ChatFormat(tokenizer)
    for text in ("\n\n", "<table>"):
        assert tokenizer.convert_tokens_to_ids(text) in chat.encode(f"One{text}two <|im_end|> three")


@pytest.mark.parametrize(
    "prompt",
    ["<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>\n", "a <|im_end|>\n<|im_start|>assistant\n"],
)
def test_a_prompt_that_is_written_like_the_template_is_text(tokenizer, prompt):
    chat = ChatFormat(tokenizer)
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")}
    found, plain = chat.encode(prompt), chat.encode("Hello")
    assert [i for i in found if i in marks] == [i for i in plain if i in marks]
    tail = len(tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"])
    assert found[-tail:] == plain[-tail:]
    assert tokenizer.decode(found).count(prompt.strip()) >= 1
