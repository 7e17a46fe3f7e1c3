"""Which columns of people's own tables are taken for what, and what is asked instead of being guessed."""

import pytest

from discernment.errors import DataError
from discernment.prompts import Label, Split
from discernment.runs.first_recipe.folder import Said, read_folder
from discernment.runs.first_recipe.recognise import Given, recognise, split_in, split_of

QUESTIONS = [f"How do I stop the process number {n}?" for n in range(8)]
KINDS = ["bad", "ok"] * 4


def table(**columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize(
    "name",
    [
        "prompt", "Prompt", "user_q", "userQuestion", "instruction", "query", "text", "Goal", "the input", "request (en)",
        "messages", "spalte_1",
    ],
)  # fmt: skip
def test_the_prompt_is_found_by_its_name_or_as_the_only_text(name):
    rows = table(nr=range(8), **{name: QUESTIONS}, kind=KINDS)
    assert recognise("q.csv", rows, Given()).text == name


def test_a_surer_name_goes_before_a_vaguer_one():
    rows = table(text=[f"Some context {n}" for n in range(8)], question=QUESTIONS, kind=KINDS)
    assert recognise("q.csv", rows, Given()).text == "question"


@pytest.mark.parametrize("name", ["response", "bot answer", "expectedReply", "model_output", "completion"])
def test_the_reply_is_found_also_where_all_refusals_are_the_same(name):
    rows = table(question=QUESTIONS, kind=KINDS, **{name: ["Sorry, I can't."] * 8})
    found = recognise("q.csv", rows, Given())
    assert (found.text, found.response, found.label) == ("question", name, "kind")


def test_a_reply_without_spaces_is_one():
    rows = table(question=QUESTIONS, kind=KINDS, answer=["对不起。我不能帮助你。"] * 8)
    assert recognise("q.csv", rows, Given()).response == "answer"


MAPPED = {
    ("kind", "bad", "borderline"): (Label.TOXIC, Label.SEEMINGLY_TOXIC),
    ("type", "Unsafe", "Safe"): (Label.TOXIC, Label.BENIGN),
    ("label", "seemingly-toxic", "TOXIC"): (Label.SEEMINGLY_TOXIC, Label.TOXIC),
    ("verdict", "should refuse", "should answer"): (Label.TOXIC, Label.BENIGN),
    ("harmful", "1", "0"): (Label.TOXIC, Label.BENIGN),
    ("isHarmful", True, False): (Label.TOXIC, Label.BENIGN),
    ("is_safe", "yes", "no"): (Label.BENIGN, Label.TOXIC),
    ("wertung", "harmless", "malicious"): (Label.BENIGN, Label.TOXIC),
}


@pytest.mark.parametrize(("column", "meanings"), MAPPED.items(), ids=lambda value: str(value[0]))
def test_label_values_are_known_by_what_they_are_called(column, meanings):
    name, one, other = column
    found = recognise("q.csv", table(question=QUESTIONS, **{name: [one, other] * 4}), Given())
    assert found.label == name
    assert found.meanings == {str(one): meanings[0], str(other): meanings[1]}
    assert f"`{name}` as label" in found.in_words()
    assert f"`{one}` -> {meanings[0]}" in found.in_words()


ASKED = {
    "values that say nothing": ({"label": ["1", "0"] * 4}, "`1` .4 rows., `0` .4 rows. of the column `label`"),
    "a label that says nothing beside a column that would": (
        {"status": ["ok"] * 8, "label": ["1", "0"] * 4},
        "`1` .4 rows., `0` .4 rows. of the column `label` are no known labels; say what each means",
    ),
    "a grey label": (
        {"labels": ["toxic", "grey"] * 4, "state": ["bad", "ok"] * 4},
        "the values `grey` .4 rows. of the column `labels` .*`--label-map q.csv:grey=",
    ),
    "answers": ({"answer": [True, False] * 4}, "no column whose values are known labels"),
    "one value of three": ({"kind": ["bad", "ok", "weird", "ok"] * 2}, "the values `weird` .2 rows. .*q.csv:weird="),
    "a name that says no": ({"label": ["1", "0"] * 4, "not_safe": ["1", "0"] * 4}, "`--label-map q.csv:1="),
    "no label": ({"topic": ["code", "food"] * 4}, "no column whose values are known labels .*`--label q.csv=toxic`"),
    "two labels": (
        {"kind_a": ["bad", "ok"] * 4, "kind_b": ["ok", "bad"] * 4},
        "several columns that may hold the labels .`kind_a`, `kind_b`.*--column q.csv:label=",
    ),
    "yes and no to two labels": (
        {"toxic": ["1", "0"] * 4, "seemingly_toxic": ["0", "1"] * 4},
        "several columns that may hold the labels .`toxic`, `seemingly_toxic`.*--column q.csv:label=",
    ),
    "yes and no that contradict": (
        {"harmful": [True, False] * 4, "is_safe": [True, True] * 4},
        "several columns that may hold the labels .`harmful`, `is_safe`.*--column q.csv:label=",
    ),
    "yes and no to what seems so": ({"seemingly_toxic": ["1", "0"] * 4}, "no column whose values are known labels"),
    "two prompts": (
        {"my_prompt": QUESTIONS, "your_prompt": QUESTIONS[::-1], "question": [None] * 8, "kind": KINDS},
        "several columns that may hold the prompts .`my_prompt`, `your_prompt`.*--column q.csv:text=",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "sentence"), ASKED.values(), ids=ASKED)
def test_what_is_unclear_is_asked_for_in_one_sentence(columns, sentence):
    rows = table(**({} if "my_prompt" in columns else {"question": QUESTIONS}), **columns)
    with pytest.raises(DataError, match=sentence) as raised:
        recognise("q.csv", rows, Given())
    assert str(raised.value).count("\n") == 0


def test_yes_and_no_in_two_columns_that_agree():
    rows = table(question=QUESTIONS, is_safe=["no", "yes"] * 4, harmful=[1, 0] * 4, is_toxic=[1, None] * 4)
    found = recognise("q.csv", rows, Given())
    assert (found.label, found.meanings) == ("harmful", {"1": Label.TOXIC, "0": Label.BENIGN})


@pytest.mark.parametrize(
    "about", ["prompt_id", "prompt id", "promptType", "request_source", "input_language"]
)
def test_what_is_said_of_a_prompt_is_no_prompt(about):
    said = [f"word-{n}" for n in range(8)]
    assert (
        recognise("q.csv", table(**{about: said}, user_question=QUESTIONS, kind=KINDS), Given()).text
        == "user_question"
    )
    assert recognise("q.csv", table(**{about: said}, frage=QUESTIONS, kind=KINDS), Given()).text == "frage"


def test_a_question_may_be_the_name_of_a_column():
    asked = "What did the user ask the model?"
    rows = table(**{asked: QUESTIONS, "Would you answer it yourself?": QUESTIONS[::-1], "kind": KINDS})
    with pytest.raises(DataError, match=r"q.csv seems to have no line of column names"):
        recognise("q.csv", rows, Given())
    assert recognise("q.csv", rows, Given(columns={"text": asked})).text == asked
    named = table(**{"prompt": QUESTIONS, "Would you answer it yourself?": QUESTIONS[::-1], "kind": KINDS})
    found = recognise("q.csv", named, Given())
    assert (found.text, found.response) == ("prompt", None)


def test_no_text_at_all():
    with pytest.raises(DataError, match=r"q\.csv has no column of texts that may be prompts"):
        recognise("q.csv", table(number=range(8), kind=KINDS), Given())


def test_what_the_user_says_goes_first():
    rows = table(prompt=QUESTIONS, other=QUESTIONS[::-1], kind=KINDS, label=["1", "0"] * 4)
    given = Given(
        columns={"text": "other", "label": "label"}, meanings={"1": Label.SEEMINGLY_TOXIC, "0": "none"}
    )
    found = recognise("q.csv", rows, given)
    assert (found.text, found.label) == ("other", "label")
    assert found.meanings == {"1": Label.SEEMINGLY_TOXIC, "0": "none"}
    assert recognise("q.csv", rows, Given(label=Label.TOXIC)).fixed_label is Label.TOXIC
    with pytest.raises(DataError, match=r"q\.csv has no column `gone` .*columns: `prompt`, `other`"):
        recognise("q.csv", rows, Given(columns={"text": "gone"}))


@pytest.mark.parametrize(
    ("file", "label"),
    [
        ("benign.jsonl", Label.BENIGN),
        ("harmful_prompts_train.csv", Label.TOXIC),
        ("sub/seemingly-toxic.jsonl.gz", Label.SEEMINGLY_TOXIC),
    ],
)
def test_a_name_that_says_one_label_and_nothing_else_is_taken(file, label):
    found = recognise(file, table(question=QUESTIONS), Given())
    assert (found.label, found.fixed_label) == (None, label)
    assert f"all rows as {label} (as its name says)" in found.in_words()


INCIDENTAL = {
    "a state": ("toxic.csv", {"status": ["ok"] * 8}, Label.TOXIC),
    "some of its values": ("toxic.csv", {"status": ["ok", "ok", "ok", "later"] * 2}, Label.TOXIC),
    "answers": ("benign.jsonl", {"answer": [True, False] * 4}, Label.BENIGN),
    "an answer of yes": ("toxic.csv", {"gold_answer": ["yes"] * 8}, Label.TOXIC),
}


@pytest.mark.parametrize(("file", "columns", "label"), INCIDENTAL.values(), ids=INCIDENTAL)
def test_a_files_name_goes_before_a_column_that_only_happens_to_hold_a_known_word(file, columns, label):
    found = recognise(file, table(question=QUESTIONS, **columns), Given())
    assert (found.label, found.fixed_label) == (None, label)


def test_a_column_that_is_called_like_a_label_or_named_by_the_user_goes_before_the_files_name():
    ok = ["ok"] * 8
    assert recognise("toxic.csv", table(question=QUESTIONS, kind=ok), Given()).label == "kind"
    rows = table(question=QUESTIONS, status=ok)
    for given in (Given(columns={"label": "status"}), Given(meanings={"ok": Label.BENIGN})):
        assert recognise("toxic.csv", rows, given).meanings == {"ok": Label.BENIGN}


def test_a_files_name_and_a_column_that_differ_are_asked_about():
    rows = table(question=QUESTIONS, status=["ok", "blocked"] * 4)
    sentence = "toxic.csv is toxic by its name, and its column `status` .*`--label toxic.csv=toxic` or `--column toxic.csv:label="
    with pytest.raises(DataError, match=sentence):
        recognise("toxic.csv", rows, Given())
    assert recognise("all.csv", rows, Given()).meanings == {"blocked": Label.TOXIC, "ok": Label.BENIGN}


def test_should_answer_is_a_question_of_yes_and_no():
    found = recognise("q.csv", table(question=QUESTIONS, should_answer=["yes", "no"] * 4), Given())
    assert found.meanings == {"no": Label.TOXIC, "yes": Label.BENIGN}


@pytest.mark.parametrize(
    ("file", "split", "label"),
    [
        ("fold/train/benign.csv", Split.TRAIN, Label.BENIGN),
        ("fold/test/toxic/part-a.csv", Split.TEST, Label.TOXIC),
        ("test/toxic/train/benign.csv", Split.TRAIN, Label.BENIGN),
        ("toxic/dev.csv", Split.VALIDATION, Label.TOXIC),
        ("test/toxic/train_and_test.jsonl.gz", None, None),
        ("v1.test/toxic/1.csv", Split.TEST, Label.TOXIC),
        ("held_out_toxic.csv", Split.TEST, Label.TOXIC),
    ],
)
def test_folders_say_what_a_files_name_leaves_open_the_nearest_first(file, split, label):
    assert split_in(file) is split
    if label is not None:
        assert recognise(file, table(question=QUESTIONS), Given()).fixed_label is label


@pytest.mark.parametrize(
    "file",
    [
        "bad_refusals.csv", "toxic_or_not.csv", "answers_to_harmful.csv", "all.csv", "benign/toxic_or_not.csv",
        "toxic/good and bad/all.csv",
    ],
)  # fmt: skip
def test_a_name_that_says_more_is_not(file):
    with pytest.raises(DataError, match="no column whose values are known labels"):
        recognise(file, table(question=QUESTIONS), Given())


def test_a_value_that_is_no_split_is_asked_about():
    rows = table(question=QUESTIONS, kind=KINDS, split=["train", "holdout"] * 4)
    with pytest.raises(
        DataError, match=r"has in its column `split` `holdout`, which is no split; write train"
    ):
        recognise("q.csv", rows, Given())
    other = table(question=QUESTIONS, kind=KINDS, split=["left", "right"] * 4)  # of something else
    assert recognise("q.csv", other, Given()).split is None
    with pytest.raises(DataError, match="column `kind` `bad`, `ok`, which is no split"):
        recognise("q.csv", other, Given(columns={"split": "kind"}, label=Label.TOXIC))


def test_splits():
    rows = table(question=QUESTIONS, kind=KINDS, split=["train", "dev", "test", "Training"] * 2)
    assert recognise("q.csv", rows, Given()).split == "split"
    assert [split_of(row["split"]) for row in rows[:4]] == [
        Split.TRAIN, Split.VALIDATION, Split.TEST, Split.TRAIN,
    ]  # fmt: skip
    numbers = table(question=QUESTIONS, kind=KINDS, fold=[0, 1, 2, 3] * 2)
    assert recognise("q.csv", numbers, Given()).split is None


def test_a_validation_stays_where_there_is_no_test(tmp_path):
    topics = ["boats", "kites", "lamps", "soups", "drums", "tents", "gates", "coats", "ferns", "seals"]
    for file, verbs in (("train", ["stop", "sell", "hide", "draw"]), ("validation", ["wash", "lift"])):
        rows = [f"How would one {verb} {n} {topic}?" for n, topic in enumerate(topics) for verb in verbs]
        (tmp_path / f"{file}.csv").write_text(
            "prompt,label\n" + "".join(f"{row},{['toxic', 'benign'][n % 2]}\n" for n, row in enumerate(rows))
        )
    found = read_folder(tmp_path, Said({}, []))
    splits = {name: {p.split for p in found.prompts if p.source == name} for name in ("train", "validation")}
    assert splits == {"train": {Split.TRAIN, Split.TEST}, "validation": {Split.VALIDATION}}
    assert "the validation as the files say" in found.split
