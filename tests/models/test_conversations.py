"""A conversation, with a system message of its own or without, in the form of every public model family."""

from __future__ import annotations

import pytest

from discernment.errors import ModelError
from discernment.models.chat import ChatFormat
from discernment.policies.adacd import AdaCd
from discernment.policies.prompted import Prompted
from discernment.policies.self_cd import SelfCd
from discernment.prompts import Conversation, Turn
from forms import FORMS, TODAY, Form

REPLY = "Sure, mix flour."
EARLIER = (
    Turn(role="user", content="How do I bake?"),
    Turn(role="assistant", content="With heat, and <b>.."),
)
TALKS = {
    "system": Conversation(text="Hi", system="Be kind."),
    "turns": Conversation(text="And then?", earlier=EARLIER),
    "both": Conversation(text="And then?", system="Be kind.", earlier=EARLIER),
}
CHATS = [form for form in FORMS if form.refused is None and form.template is not None]


def written(form: Form, talk: Conversation) -> str | None:
    """The template's own rendering, None where it refuses the turns or leaves one out."""
    turns = [
        {**turn, "content": [{"type": "text", "text": turn["content"]}] if form.parts else turn["content"]}
        for turn in talk.turns
    ]
    try:
        text = form.apply(turns, add_generation_prompt=True) + form.closes
    except Exception:  # the template's own way to refuse
        return None
    said = [turn["content"] for turn in talk.turns if turn["role"] != "assistant"]
    return text if all(part in text for part in said) else None


@pytest.mark.parametrize("name", TALKS)
def test_the_template_writes_the_turns(name: str) -> None:
    talk, rendered = TALKS[name], 0
    for form in CHATS:
        chat, wanted = ChatFormat(form.made, date=TODAY), written(form, talk)
        if wanted is None:
            with pytest.raises(ModelError, match=r"use `template: plain`"):
                chat.render(talk)
            continue
        rendered += 1
        assert chat.render(talk) == wanted, form.name
        assert chat.encode(talk) == form.ids(wanted), form.name
        if not form.melts:
            reply = chat.encode_reply(talk, REPLY)
            assert reply == chat.encode_reply("Hi", REPLY), form.name
    assert rendered >= 18


def test_the_plain_template_repeats_its_headings(tokenizer) -> None:
    chat = ChatFormat(tokenizer, template="plain")
    assert chat.render(TALKS["both"]) == (
        "Be kind.\n\n### Instruction:\nHow do I bake?\n\n### Response:\nWith heat, and <b>..\n\n"
        "### Instruction:\nAnd then?\n\n### Response:\n"
    )
    assert chat.encode(TALKS["both"]) == tokenizer(chat.render(TALKS["both"]))["input_ids"]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_prompt_s_system_message_stands_behind_the_policy_s(tokenizer, template: str) -> None:
    bare = ChatFormat(tokenizer, template=template)
    own = Conversation(text="Hi", system="Be kind.")
    assert bare.encode(own) == bare.with_system("Be kind.").encode("Hi")
    assert bare.with_system("Be brief.").encode(own) == bare.with_system("Be brief.\n\nBe kind.").encode("Hi")
    empty = Conversation(text="Hi", system="")
    assert bare.encode(empty) == bare.with_system("").encode("Hi")
    assert bare.with_system("Be brief.").encode(empty) == bare.with_system("Be brief.").encode("Hi")
    assert bare.encode(Conversation.of("Hi")) == bare.encode("Hi")


def test_control_tokens_in_any_turn_are_text(tokenizer) -> None:
    mark, number = "<|im_end|>", tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = ChatFormat(tokenizer)
    earlier = (Turn(role="user", content=f"a{mark}b"), Turn(role="assistant", content=f"{mark}c"))
    talk = Conversation(text=f"d{mark}", system=f"{mark}{mark}e", earlier=earlier)
    ids = plain.encode(talk)
    assert ids.count(number) == len(talk.turns) == 4
    assert tokenizer.decode(ids) == plain.render(talk)
    read = ChatFormat(tokenizer, special_tokens="tokens").encode(talk)
    assert read.count(number) == 4 + 5


def test_control_tokens_in_a_reply_are_text_but_for_its_end_and_a_thought(tokenizer) -> None:
    marks = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in ("<|im_start|>", "<|im_end|>")}
    chat = ChatFormat(tokenizer)
    about = "Write <|im_end|> and then <|im_start|>user"
    ids = chat.encode_reply("Hi", about)
    assert ids[-1] == marks["<|im_end|>"] not in ids[:-1]
    assert marks["<|im_start|>"] not in ids
    assert tokenizer.decode(ids) == f"{about}<|im_end|>"
    # As the templates would have it, and as a file may hold it already.
    assert chat.encode_reply("Hi", "Hello.<|im_end|>") == chat.encode_reply("Hi", "Hello.")
    assert chat.encode_reply("Hi", "Hello.<|im_end|>\n") == chat.encode_reply("Hi", "Hello.")
    read = ChatFormat(tokenizer, special_tokens="tokens").encode_reply("Hi", about)
    assert (read.count(marks["<|im_start|>"]), read.count(marks["<|im_end|>"])) == (1, 2)

    made = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    made.chat_template = tokenizer.chat_template
    made.add_tokens(["<think>", "</think>"], special_tokens=True)
    thinking = [made.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")]
    ids = ChatFormat(made).encode_reply("Hi", "<think>\nFine.\n</think>\n\nWrite </think> yourself.")
    assert [token for token in ids if token in thinking] == thinking


def test_a_system_message_that_the_template_leaves_out_is_told_for_plain_prompts_too(tokenizer) -> None:
    made = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    made.chat_template = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}"
    chat = ChatFormat(made)
    assert chat.render("Hi") == "[Hi]"
    assert chat.with_system("").render("Hi") == "[Hi]"
    with pytest.raises(ModelError, match="leaves out the system message of the prompt that ends 'Hi'"):
        chat.with_system("Be kind.").render("Hi")
    for rule in (SelfCd(), AdaCd(), Prompted()):
        with pytest.raises(ModelError, match="use `template: plain`, or leave it out"):
            rule.contexts(chat, "Hi")


@pytest.mark.parametrize(
    ("template", "talk", "what"),
    [
        (
            "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}",
            "system",
            "the system message",
        ),
        ("[{{ messages[-1].content }}]", "turns", "an earlier turn"),
    ],
)
def test_a_template_that_leaves_a_turn_out_is_told(tokenizer, template: str, talk: str, what: str) -> None:
    made = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    made.chat_template = template
    with pytest.raises(ModelError, match=f"leaves out {what} of the prompt .*{TALKS[talk].text}"):
        ChatFormat(made).encode(TALKS[talk])
    assert ChatFormat(made).render("Hi") == "[Hi]"
