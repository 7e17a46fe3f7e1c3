"""Thought and answer come apart for every form, and texts that are only about the marks stay whole."""

from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from discernment.models.thoughts import closing_of, read_reply, split_thought
from tiny import CORPUS

HARMONY = "<|end|><|start|>assistant<|channel|>final<|message|>"
# Written by hand: what replies look like as the models' tokenizers write them.
FORMS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel|>analysis<|message|>", HARMONY),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel|>commentary<|message|>", HARMONY),
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
    ("analysis", "assistantfinal"),
]
MARKED = [form for form in FORMS if form[0] != "analysis"]
# Without brackets there are no marks; a capital follows the bare word and none of it is in the rest.
TEXTS = st.text(st.characters(exclude_characters="<>[]◁▷", exclude_categories=["Cs"])).map(
    lambda text: "We " + text.replace("assistantfinal", "")
)
SPACE = st.text("\n\t ", max_size=3)


def test_no_form_is_left_out() -> None:
    data = yaml.safe_load(
        resources.files("discernment.models").joinpath("thoughts.yaml").read_text(encoding="utf-8")
    )
    said = [
        (form["opens"], closes)
        for form in data["thoughts"]
        for closes in ([form["closes"]] if isinstance(form["closes"], str) else form["closes"])
    ]
    assert sorted(said) == sorted(FORMS)
    assert {form["opens"] for form in data["answers"]} == {opens for opens, _ in WRAPPED}


@pytest.mark.parametrize("form", FORMS)
@given(thought=TEXTS, answer=TEXTS, space=SPACE)
def test_both_parts_come_back(form, thought, answer, space) -> None:
    opens, closes = form
    glue = "" if opens == "analysis" else space
    found = split_thought(f"{space}{opens}{glue}{thought}{space}{closes}{space}{answer}")
    assert found == (thought.strip(), answer.strip())
    assert split_thought(answer.strip()) == (None, answer.strip())
    assert split_thought(f"{opens}{glue}{thought}") == (thought.strip(), None)
    other = opens.swapcase() + glue + thought + closes.swapcase() + answer
    assert split_thought(other) == ((None, other) if opens == "analysis" else found)


@given(TEXTS, SPACE)
def test_a_text_without_marks_is_left_as_it_is(text, space) -> None:
    assert split_thought(space + text + space) == (None, space + text + space)


@pytest.mark.parametrize(
    "text",
    [
        "The tag <think> opens a thought, and </think> closes it.",
        "Models write `<think>` first.\nThen `</think>`\nThen the answer.",
        "Use this:\n\n```\n<think>\nWhat now?\n</think>\nDone.\n```\n\nThat is all.",
        "Use this:\n\n```\nWhat now?\n</think>\nDone.\n```\n\nThat is all.",
        "Like so:\n<think>\nWhat now?\n</think>\nDone.",
        "Ok. <think>Wait, I should",
        "```\n<think>a</think>\n```",
        "`<think>` is a tag.",
        "analysis of the data: assistantfinal is a word, too",
        "Analysis. Then assistantfinal comes.",
        "finalWord",
        "<answer>42</answer>",
        "",
        " \n",
    ],
)
def test_an_answer_about_marks_stays_whole(text) -> None:
    assert split_thought(text) == (None, text)


WRAPPED = [
    ("<|channel|>final<|message|>", ""),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
]


@pytest.mark.parametrize(("opens", "closes"), WRAPPED)
def test_marks_around_an_answer_are_taken_off(opens, closes) -> None:
    assert split_thought(f"<think>a</think>\n{opens}\nIt is 42.\n{closes}\n") == ("a", "It is 42.")
    assert split_thought(f"<think>a</think>\n{opens}\nIt is") == ("a", "It is")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\n\n</think>\n\nSure.", None, "Sure."),
        ("<think></think>", None, ""),
        ("<think>", None, None),
        ("<think>a</think> <think>b</think> c", "a\n\nb", "c"),
        ("<think>a</think>[THINK]b", "a\n\nb", None),
        ("<think>a</think>The tag </think> closes.", "a", "The tag </think> closes."),
        ("The user wants a weapon.</think>\n\nNo.", "The user wants a weapon.", "No."),
        ("The user wants a weapon.\n</think>No.", "The user wants a weapon.", "No."),
        ("</think>\n\nNo.", None, "No."),
        ("<|channel|>final<|message|>No.", None, "No."),
        (
            f"<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>commentary<|message|>B.{HARMONY}C.",
            "A.<|end|><|start|>assistant<|channel|>commentary<|message|>B.",
            "C.",
        ),
    ],
)
def test_replies_worked_out_by_hand(text, thought, answer) -> None:
    assert split_thought(text) == (thought, answer)


@pytest.mark.parametrize(
    "text", ["<think>", "<think></think>", "</think>\n", "`</think>`\n", "```\n</think>\n"]
)
def test_repeated_marks_take_no_time(text) -> None:
    split_thought(text * 4000)


@pytest.mark.parametrize(
    ("rendered", "closing"),
    [
        ("<|im_start|>assistant\n<think>\n", "\n</think>\n\n"),
        ("<|assistant|><think>", "</think>"),
        ("<|im_start|>assistant\n<think>\n\n", "</think>\n\n"),
        ("<|CHATBOT_TOKEN|><|START_THINKING|>", "<|END_THINKING|>"),
        ("<|start|>assistant<|channel|>analysis<|message|>", HARMONY),
        ("<|im_start|>assistant\n", None),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None),
        ("What does <think> mean?<|im_end|>\n<|im_start|>assistant\n", None),
        ("Write an analysis", None),
    ],
)
def test_what_closes_a_thought_that_the_prompt_opens(rendered, closing) -> None:
    assert closing_of(rendered) == closing


@pytest.mark.parametrize(("opens", "closes"), MARKED)
def test_a_thought_closed_empty_leaves_the_answer(opens, closes) -> None:
    for space in ("", "\n", "\n\n"):
        closing = closing_of(f"assistant\n{opens}{space}")
        assert closing is not None
        assert split_thought(f"{opens}{space}{closing}Sure.") == (None, "Sure.")
        assert closing_of(f"assistant\n{opens}{space}{closing}") is None


# ---------------------------------------------------------------------- token ids


@pytest.fixture(scope="module", params=[True, False], ids=["special", "plain"])
def marked(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """A tokenizer that has the marks as special tokens, or as several plain ones."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|im_end|>", "<s>"]
    if request.param:
        special += ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|START_RESPONSE|>"]
        special += [
            mark
            for form in MARKED
            for mark in form
            if "<|message|>" not in mark and mark != "<|channel>thought"
        ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<|im_end|>", bos_token="<s>"
    )


@pytest.mark.parametrize(("opens", "closes"), MARKED)
def test_special_tokens_are_dropped_after_the_parts_are_told(marked, opens, closes) -> None:
    def ids(text: str) -> list[int]:
        return marked(text, add_special_tokens=False)["input_ids"]

    prompt, thought, answer = (
        ids("How do I kill a process?\n"),
        "Is it bad? I can't say.",
        "Sure, here is how.",
    )
    reply = f"{opens}\n{thought}\n{closes}\n\n{answer}"
    assert read_reply(marked, prompt, ids(reply)) == (answer, thought)
    assert read_reply(marked, prompt, [marked.bos_token_id, *ids(reply)]) == (answer, thought)
    # opened by the prompt
    begun = [*prompt, *ids(f"{opens}\n")]
    assert read_reply(marked, begun, ids(f"{thought}\n{closes}\n\n{answer}")) == (answer, thought)
    # cut: all of it is shown, and anybody can tell from it that it is a thought
    for text, _ in (
        read_reply(marked, begun, ids(thought)),
        read_reply(marked, prompt, ids(f"{opens}\n{thought}")),
    ):
        assert text == f"{opens}\n{thought}"
        assert split_thought(text) == (thought, None)
    # no thought
    assert read_reply(marked, prompt, [*ids(answer), marked.bos_token_id]) == (answer, None)


def test_a_thought_within_specials(marked) -> None:
    def ids(text: str) -> list[int]:
        return marked(text, add_special_tokens=False)["input_ids"]

    reply = f"<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.{HARMONY}Sure."
    text, thought = read_reply(marked, ids("<|start|>assistant"), ids(reply))
    assert text == "Sure."
    assert thought is not None and ("<|" not in thought) == (
        marked.convert_tokens_to_ids("<|end|>") is not None
    )
    assert read_reply(marked, [], ids("<|channel|>final<|message|>Sure.")) == ("Sure.", None)
    assert read_reply(marked, [], ids("<|START_RESPONSE|>Sure.<|END_RESPONSE|>")) == ("Sure.", None)
    assert read_reply(marked, [], []) == ("", None)
