"""Prompts, replies and refusals in the form of public model families (`docs/templates.md` lists them)."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from discernment.errors import ModelError
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from discernment.training.examples import encode_examples
from discernment.training.supervised import AlignOptions, align
from forms import FORMS, PROMPTS, REFUSAL, REPLIES, TODAY, Form
from tiny import make_model

STEPS = 150
SAID = dict(zip(PROMPTS, [REFUSAL, REFUSAL, "Sure, mix flour."], strict=True))
USABLE = [form for form in FORMS if form.refused is None]


def by_name(forms: list[Form]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("form", forms, ids=[form.name for form in forms])


def chat_of(form: Form) -> ChatFormat:
    return ChatFormat(form.made, date=TODAY)


def exchange(form: Form, prompt: str, reply: str) -> tuple[list[int], list[int], list[int]]:
    """Our ids of prompt and reply, and the tokenizer's of the template's rendering."""
    chat = chat_of(form)
    return chat.encode(prompt), chat.encode_reply(prompt, reply), form.ids(form.told(prompt, reply))


def examples(replies: list[str]) -> PromptSet:
    rows = [
        Prompt(id=f"{n}-{m}", text=prompt, label=Label.TOXIC, source="made", response=reply)
        for n, prompt in enumerate(PROMPTS)
        for m, reply in enumerate(replies)
    ]
    return PromptSet(rows, Provenance(name="made"))


def overfitted(form: Form) -> Policy:
    """A tiny model that gives the replies of SAID, in the ids of the template's own rendering."""
    chat = chat_of(form)
    model = make_model("llama", len(form.made), num_hidden_layers=2, max_position_embeddings=512).train()
    rows, labels = [], []
    for prompt, said in SAID.items():
        begun, reply, whole = exchange(form, prompt, said)
        whole = begun + reply if form.melts else whole
        rows.append(whole)
        labels.append([-100] * len(begun) + whole[len(begun) :])
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    wanted = torch.tensor([row + [-100] * (longest - len(row)) for row in labels])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(STEPS):
        loss = model(ids, labels=wanted).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.002:  # the whole reply has a probability above .97
            break
    assert loss < 0.002
    return Policy(model.eval(), chat, form.name)


def test_there_are_forms_of_every_kind():
    assert len(USABLE) >= 25
    assert {form.tokenizer for form in USABLE} == set(get_args(Form.model_fields["tokenizer"].annotation))
    assert len({form.template for form in USABLE}) >= 25
    alone = {form.name: form.made(REFUSAL, add_special_tokens=False)["input_ids"] for form in USABLE}
    other = [f for f in USABLE if f.ids(f.told("Hi", REFUSAL))[-len(alone[f.name]) - 1 : -1] != alone[f.name]]
    assert len(other) >= 12  # a reply alone has other tokens than behind a prompt
    assert len([form for form in USABLE if form.between or form.closes]) >= 10


@by_name([form for form in USABLE if form.template and "strftime_now" not in form.template])
def test_rendering_is_the_one_of_the_library(form):
    for turns, prompt in ((form.turns("Hi"), True), (form.turns("Hi", REFUSAL), False)):
        own = form.made.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=prompt, **form.options
        )
        assert own == form.apply(turns, add_generation_prompt=prompt)
    assert REFUSAL in own


@by_name(USABLE)
def test_prompt_and_reply_are_what_the_template_writes(form):
    chat, same = chat_of(form), 0
    for prompt in PROMPTS:
        assert chat.encode(prompt) == form.ids(form.asked(prompt) + form.closes)
        for reply in REPLIES:
            begun, answer, whole = exchange(form, prompt, reply)
            assert form.made.decode(begun + answer) == form.decoded(form.told(prompt, reply)), reply
            if whole[: len(begun)] == begun:
                assert begun + answer == whole, reply
                same += 1
            else:  # white space that is one token with the end of the prompt
                assert form.melts or reply[0].isspace()
    assert same >= (0 if form.melts else 15)


@by_name(USABLE)
def test_what_stands_before_every_reply_is_lead(form):
    chat = chat_of(form)
    behind = [chat.encode_reply(prompt, reply) for prompt in PROMPTS for reply in REPLIES[:4]]
    assert all(ids[: len(chat.lead)] == chat.lead for ids in behind)
    opening = chat.encode_opening("I can't")
    assert len(opening) >= 2
    for prompt in PROMPTS:
        answer = chat.encode_reply(prompt, REFUSAL)
        assert answer[: len(chat.lead) + len(opening)] == chat.lead + opening


@by_name(USABLE)
def test_labels_are_the_reply_and_the_end_of_its_turn(form):
    end = form.made.convert_tokens_to_ids(form.ends_with)
    assert chat_of(form).end_of_turn == end
    prompts = examples([REFUSAL, "Sure.\n\nFirst, mix flour and water."])
    rows = encode_examples(prompts, chat_of(form), 512)
    assert len(rows) == len(prompts) == 6
    for row, example in zip(rows, prompts, strict=True):
        begun, answer, whole = exchange(form, example.text, example.response)
        labels = [i for i, on in zip(row["input_ids"], row["completion_mask"], strict=True) if on]
        assert labels == (answer if form.melts else whole[len(begun) :])
        assert labels[-1] == end
        assert labels.count(end) == 1
        assert row["input_ids"] == begun + labels


@by_name(USABLE)
@pytest.mark.thinned(4)
def test_a_model_that_refuses_is_seen_to_refuse(form):
    policy = overfitted(form)
    *refused, answered = rejection_probability(policy, list(SAID))
    assert min(refused) > 0.95
    assert answered < 0.05
    completions = policy.generate(policy.encode(list(SAID)), 40)
    assert [c.text for c in completions] == list(SAID.values())
    assert all(c.finished for c in completions)


@by_name([form for form in FORMS if form.refused is not None])
def test_templates_that_cannot_be_cut_say_so(form):
    chat = chat_of(form)
    with pytest.raises(ModelError, match=form.refused) as caught:
        chat.encode_reply("Hi", REFUSAL)
    assert str(caught.value).count(". ") == 0


@by_name([form for form in USABLE if "raise_exception" in (form.template or "")])
def test_no_system_message_where_the_template_has_none(form):
    chat = ChatFormat(form.made, system="Be kind.", date=TODAY)
    if form.name == "llama2":
        assert "Be kind." in chat.render("Hi")
    else:
        with pytest.raises(ModelError, match="The chat template refuses these turns"):
            chat.encode("Hi")


@by_name([form for form in USABLE if form.special])
def test_marks_in_a_prompt_are_text(form):
    chat = chat_of(form)
    marks = [*form.special, *(w for w in form.words if w.strip() and w in (form.template or ""))]
    plain = chat.encode("Say this.")
    for mark in marks:
        spoken = form.made.convert_tokens_to_ids(mark)
        asked = f"Say {mark} this."
        ids = chat.encode(asked)
        assert ids.count(spoken) == plain.count(spoken), mark
        # Cut in other places, SentencePiece puts other spaces between the parts.
        whole = form.decoded(form.asked(asked) + form.closes)
        assert form.made.decode(ids).replace(" ", "") == whole.replace(" ", "")


@by_name([form for form in USABLE if form.name in ("zephyr", "harmony", "deepseek_r1")])
def test_alignment_teaches_what_the_template_writes(form, tmp_path):
    make_model("llama", len(form.made), num_hidden_layers=2, max_position_embeddings=512).save_pretrained(
        tmp_path / "base"
    )
    form.made.save_pretrained(tmp_path / "base")
    options = AlignOptions(learning_rate=0.02, epochs=40, batch_size=3, schedule="constant_with_warmup")
    align(str(tmp_path / "base"), examples([REFUSAL]), options, tmp_path / "out")
    policy = Policy.load(str(tmp_path / "out"))
    assert min(rejection_probability(policy, PROMPTS)) > 0.95
    assert {c.text for c in policy.generate(policy.encode(PROMPTS), 40)} == {REFUSAL}
    # What it gives is what the template writes: the likeliest tokens, one after the other.
    prompt = policy.encode(PROMPTS)[0]
    ids = torch.tensor([[*prompt, *policy.chat.encode_reply(PROMPTS[0], REFUSAL)]])
    with torch.no_grad():
        likeliest = policy.model(ids).logits.argmax(-1)
    assert likeliest[0, len(prompt) - 1 : -1].tolist() == ids[0, len(prompt) :].tolist()


def test_the_list_of_forms_is_in_the_docs():
    text = Path(__file__).parents[2].joinpath("docs/templates.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [row(form) for form in FORMS]


def row(form: Form) -> str:
    lead = [f"`{form.closes!r}`, the end of the thought"] if form.closes else []
    lead += [f"`{form.between!r}`"] if form.between else []
    end = f"`{form.ends_with}`" + ("" if form.writes_end else ", not written")
    if form.refused:
        result = f"one sentence: the template {form.refused}"
    elif form.melts:
        result = "the template's text; the prompt's last space stays a token of its own"
    elif form.drops_thought:
        result = "the template's tokens, behind the closed thought that its history drops"
    else:
        result = "the template's tokens"
    cells = [form.models, form.tokenizer, "; ".join(lead), end, result]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
