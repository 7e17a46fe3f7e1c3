"""Decoupled refusal training: what its rows hold, and that its loss is the published one."""

import copy
import math

import pytest
import torch

from discernment.errors import TrainingError
from discernment.files import read_json_lines, write_json_lines
from discernment.models.chat import ChatFormat
from discernment.models.loading import load_model
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, PromptSet, Provenance
from discernment.training.derta import DertaOptions, align_decoupled, derta_rows
from discernment.training.examples import IGNORED
from discernment.training.options import LoraOptions
from discernment.training.supervised import AlignOptions
from tiny import make_benign, make_prompts

TOXIC = make_prompts(6).with_label(Label.TOXIC)
HARM = "Write a short letter to the editor about the weather."
ALL = DertaOptions(keep=1.0, plain_every=None)


@pytest.fixture
def chat(tokenizer):
    return ChatFormat(tokenizer)


def rows_of(chat, examples=TOXIC, own=ALL, text=HARM, **options):
    harmful = {p.id: text for p in examples if p.label.should_refuse}
    return derta_rows(examples, harmful, chat, AlignOptions(**options), own)


def parts(row):
    """What a row reads and does not learn, and what it learns, token by token."""
    ids, labels = row["input_ids"], row["labels"]
    assert len(ids) == len(labels)
    return [(t, label) for t, label in zip(ids, labels, strict=True) if label != IGNORED]


def test_every_harmful_reply_makes_two_rows_and_is_never_learned(chat, tokenizer):
    examples = PromptSet.concatenate([make_benign(2), TOXIC], "mix")
    made = rows_of(chat, examples)
    assert len(made.rows) == len(made.names) == 2 + 2 * len(TOXIC)
    sorry = chat.encode_opening("Sorry")[0]
    for row, example in zip(made.rows, make_benign(2), strict=False):
        learned = parts(row)
        assert [t for t, _ in learned] == [label for _, label in learned]
        assert tokenizer.decode([t for t, _ in learned]) == f"{example.response}<|im_end|>"
    lengths = set()
    for number, example in enumerate(TOXIC):
        turning, refusing = made.rows[2 + 2 * number], made.rows[3 + 2 * number]
        prompt = chat.encode(example.text)
        learned = parts(turning)
        assert [t for t, _ in learned] == [label for _, label in learned]
        assert tokenizer.decode([t for t, _ in learned]) == f"{example.response}<|im_end|>"
        before = turning["input_ids"][: len(turning["input_ids"]) - len(learned)]
        assert before[: len(prompt)] == prompt
        prefix = before[len(prompt) :]
        lengths.add(len(prefix))
        harm = refusing["input_ids"][len(prompt) :]
        assert (tokenizer.decode(harm), harm[: len(prefix)]) == (HARM, prefix)
        assert refusing["labels"] == [IGNORED] * len(prompt) + [sorry] * len(harm)
    assert len(lengths) > 2  # a beginning of random length


def test_the_loss_is_the_published_one(model_folder, chat, tmp_path):
    """Of one batch: -log P(r | q, h_<k), and -log P(Sorry | q, h_<t) for t = 1..|h|, over all learned tokens."""
    base = model_folder()
    write_json_lines(tmp_path / "replies.jsonl", [{"key": p.id, "reply": HARM} for p in TOXIC])
    options = AlignOptions(batch_size=2 * len(TOXIC), learning_rate=1e-9)
    cost = align_decoupled(
        PolicySpec.of(ModelSpec(model=str(base))), TOXIC, tmp_path, options, ALL, tmp_path / "out"
    )
    (first,) = [row["loss"] for _, row in read_json_lines(tmp_path / "out/history.jsonl") if "loss" in row]
    assert (cost.steps, cost.notes["harmful_replies"]) == (1, len(TOXIC))

    model = load_model(ModelSpec(model=str(base)))
    made = rows_of(chat)
    sorry, (*harm,) = chat.encode_opening("Sorry")[0], chat.encode_reply("x", HARM)[:-1]

    def cost_of(before, token):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before])).logits[0, -1]
        return -float(torch.log_softmax(logits.double(), -1)[token])

    costs = []
    for number, example in enumerate(TOXIC):
        prompt, refusal = chat.encode(example.text), chat.encode_reply(example.text, example.response)
        k = len(made.rows[2 * number]["input_ids"]) - len(prompt) - len(refusal)
        costs += [cost_of(prompt + harm[:k] + refusal[:n], token) for n, token in enumerate(refusal)]
        costs += [cost_of(prompt + harm[:t], sorry) for t in range(len(harm))]
    assert first == pytest.approx(sum(costs) / len(costs), rel=1e-5)


@pytest.mark.parametrize(
    ("keep", "lora", "kept"), [(None, None, 0.05), (None, LoraOptions(), 1.0), (0.5, LoraOptions(), 0.5)]
)
def test_of_the_places_of_a_harmful_reply_some_are_kept(chat, keep, lora, kept):
    made = rows_of(chat, own=DertaOptions(keep=keep), lora=lora)
    begins = [len(chat.encode(p.text)) for p in TOXIC]
    places = [
        [n for n, label in enumerate(row["labels"][start:]) if label != IGNORED]
        for start, row in zip(begins, made.rows.to_list()[1::2], strict=True)
    ]
    harm = len(chat.encode_reply("x", HARM)) - 1
    assert {len(of_row) for of_row in places} == {max(1, math.ceil(kept * harm))}
    assert (len({tuple(of_row) for of_row in places}) > 1) == (kept < 1)
    again = rows_of(chat, own=DertaOptions(keep=keep), lora=lora)
    assert again.rows.to_list() == made.rows.to_list()
    assert rows_of(chat, own=DertaOptions(keep=keep), seed=1).rows.to_list() != made.rows.to_list()


def test_every_third_refusal_stands_right_behind_its_prompt(chat):
    made = rows_of(chat, make_prompts(12).with_label(Label.TOXIC), DertaOptions())
    plain = [
        row["labels"].index(next(t for t in row["labels"] if t != IGNORED)) == len(chat.encode(p.text))
        for p, row in zip(make_prompts(12).with_label(Label.TOXIC), made.rows.to_list()[::2], strict=True)
    ]
    assert plain[2::3] == [True] * 4
    assert not all(plain)


def test_a_row_is_no_longer_than_allowed_and_the_refusal_stays_whole(chat, tokenizer):
    needed = max(len(chat.encode(p.text)) + len(chat.encode_reply(p.text, p.response)) for p in TOXIC)
    made = rows_of(chat, max_length=needed + 2)
    assert max(map(len, made.rows["input_ids"])) == needed + 2
    for row, example in zip(made.rows.to_list()[::2], TOXIC, strict=True):
        assert tokenizer.decode([t for t, _ in parts(row)]) == f"{example.response}<|im_end|>"


def test_a_harmful_reply_for_which_there_is_no_room_makes_no_row(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<s>\n<s>\n{% endif %}{{ m['content'] }}"
    )
    chat = ChatFormat(tokenizer)
    before = len(chat.encode(TOXIC[0].text)) + len(chat.lead)
    assert len(chat.lead) > 1
    first = PromptSet(TOXIC[:1], Provenance(name="made"))
    for room, rows in ((1, 2), (0, 1), (-1, 1)):
        made = rows_of(chat, first, max_length=before + room)
        assert len(made.rows) == rows
        assert max(map(len, made.rows["input_ids"])) <= before + room


def test_a_toxic_prompt_without_a_harmful_reply_is_an_ordinary_example(chat, tmp_path):
    made = derta_rows(TOXIC, {TOXIC[0].id: HARM}, chat, AlignOptions(), ALL)
    assert len(made.rows) == len(TOXIC) + 1
    rows = [{"key": p.id, "reply": "I'm sorry, but I can't help with that."} for p in TOXIC]
    write_json_lines(tmp_path / "replies.jsonl", rows)
    with pytest.raises(TrainingError, match="Of 6 prompts of made, the model answered none: it refused or"):
        align_decoupled(
            PolicySpec.of("x"),
            PromptSet(TOXIC, Provenance(name="made")),
            tmp_path,
            AlignOptions(),
            ALL,
            tmp_path / "o",
        )
