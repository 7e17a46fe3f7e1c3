"""A folder of people's own prompt files as one set: what is read, what is left out, and how it is split."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discernment.errors import DataError
from discernment.prompts import Label, PromptSource, Split, load_source, split_leaks
from discernment.prompts.words import normalise
from discernment.runs.first_recipe.folder import Said, read_folder
from discernment.runs.first_recipe.recognise import Given
from tiny import make_benign, make_prompts

PLACES = ["Rome", "Paris", "Oslo", "Bern", "Kiel", "Bonn", "Graz", "Linz", "Ulm", "Trier"]
THINGS = ["a process", "the engine", "my alarm", "this film", "an oven", "the music"]


def question(n):
    return f"What stops {THINGS[n % 6]} near {PLACES[n % 10]} on day {n}?"


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """A folder with odd names, a reply that no method should learn, rows without something, and other files."""
    rows = [
        {
            "user_q": question(n),
            "kind": ["bad", "borderline", "fine"][n % 3],
            "said": [
                "Sorry, I can't help with that.",
                "Sure, turn the key.",
                "Sorry, I can't help with that.",
            ][n % 3],
        }
        for n in range(60)
    ]
    rows += [{"user_q": " ", "kind": "bad"}, {"user_q": "And this one?", "kind": ""}]
    rows += [{**rows[0], "user_q": question(0).upper()}]
    write_rows(tmp_path / "mine/questions.jsonl", rows)
    write_rows(tmp_path / "mine/sub/benign.json", [{"text": f"Write line {n}."} for n in range(6)])
    (tmp_path / "mine/notes.md").write_text("Read me.")
    (tmp_path / "mine/.hidden.csv").write_text("prompt\nHi")
    return tmp_path / "mine"


SAYS = Said({"questions.jsonl": Given(columns={"response": "said"})})


def test_every_file_is_read_and_told(folder):
    own = read_folder(folder, SAYS)
    assert own.prompts.counts() == {"toxic": 20, "seemingly_toxic": 20, "benign": 26}
    assert own.taken == [
        "questions.jsonl: column `user_q` as prompt, `kind` as label: `bad` -> toxic, `borderline` -> seemingly_toxic, "
        "`fine` -> benign, `said` as reply (21 toxic, 20 seemingly_toxic, 20 benign)",
        "sub/benign.json: column `text` as prompt, all rows as benign (as its name says) (6 benign)",
    ]
    assert own.left_out == [
        "notes.md (no table of prompts)",
        "questions.jsonl, rows without a prompt: 1",
        "questions.jsonl, rows without a label: 1",
        "questions.jsonl, replies to harmless prompts that refuse, which are not learned from: 20",
        "1 prompts that are there twice",
    ]


def test_only_refusals_of_toxic_and_answers_to_other_prompts_can_be_learned(folder):
    own = read_folder(folder, SAYS)
    said = {label: {p.response for p in own.prompts if p.label is label} for label in Label}
    assert said == {
        Label.TOXIC: {"Sorry, I can't help with that."},
        Label.SEEMINGLY_TOXIC: {"Sure, turn the key."},
        Label.BENIGN: {None},
    }


def test_the_split_leaks_nothing_and_has_all_labels_on_each_side(folder):
    own = read_folder(folder, SAYS)
    sides = {split: [p for p in own.prompts if p.split is split] for split in Split}
    assert sum(map(len, sides.values())) == len(own.prompts) == 66
    assert all({p.label for p in side} == {*Label} for side in sides.values())
    assert 0.5 < len(sides[Split.TRAIN]) / 66 < 0.7
    assert not split_leaks(sides[Split.TRAIN], sides[Split.TEST])
    assert own.of(Split.TEST, Label.BENIGN, replies=True) == []
    assert len(own.of(Split.TEST, Label.TOXIC)) > 3


def test_what_is_written_reads_back_and_a_filter_keeps_what_has_a_reply(folder, tmp_path):
    own = read_folder(folder, SAYS)
    own.prompts.to_jsonl(tmp_path / "out.jsonl")
    assert load_source(str(tmp_path / "out.jsonl")).prompts == own.prompts.prompts
    source = PromptSource(set=str(tmp_path / "out.jsonl"), split="train", label="toxic", response_begins="")
    assert [*load_source(source)] == own.of(Split.TRAIN, Label.TOXIC, replies=True)


def test_splits_that_files_have_go_first(tmp_path):
    make_prompts(6).to_jsonl(tmp_path / "pairs-test.jsonl")
    rows = [{"prompt": question(n), "label": ["toxic", "benign"][n % 2]} for n in range(20)]
    write_rows(tmp_path / "others.jsonl", rows)
    own = read_folder(tmp_path, Said())
    assert {p.split for p in own.prompts if p.source.startswith("source-")} == {Split.TEST}
    assert {p.split for p in own.prompts if p.source == "others"} == {Split.TRAIN, Split.VALIDATION}
    assert own.split.startswith("the test as the files say")
    write_rows(tmp_path / "others.jsonl", [{**row, "fold": "dev"} for row in rows])
    assert {p.split for p in read_folder(tmp_path, Said()).prompts} == {Split.TEST, Split.VALIDATION}


def test_too_few_to_split_are_kept_for_the_test(tmp_path):
    write_rows(tmp_path / "two.jsonl", [{"q": question(n), "kind": "bad"} for n in range(2)])
    own = read_folder(tmp_path, Said())
    assert [p.split for p in own.prompts] == [Split.TEST] * 2
    assert "too few" in own.split


def test_a_single_file_will_do_and_what_is_written_is_never_read(tmp_path):
    make_benign(9).to_jsonl(tmp_path / "one.jsonl")
    assert len(read_folder(tmp_path / "one.jsonl", Said()).prompts) == 9
    make_benign(20).to_jsonl(tmp_path / "mine-prompts.jsonl")
    assert len(read_folder(tmp_path, Said(), tmp_path / "mine-prompts.jsonl").prompts) == 9
    around = tmp_path / "sub/../mine-prompts.jsonl"
    (tmp_path / "sub").mkdir()
    assert len(read_folder(tmp_path, Said(), around).prompts) == 9


def test_rows_of_a_value_can_be_left_out(tmp_path):
    rows = [{"q": question(n), "kind": ["bad", "unsure", "ok"][n % 3]} for n in range(30)]
    write_rows(tmp_path / "q.jsonl", rows)
    own = read_folder(
        tmp_path, Said({"q.jsonl": Given(meanings={"unsure": "none", "ok": Label.SEEMINGLY_TOXIC})})
    )
    assert own.prompts.counts() == {"toxic": 10, "seemingly_toxic": 10}
    assert own.left_out == ["q.jsonl, rows whose `kind` you left out: 10"]


def test_rows_may_lack_what_others_have(tmp_path):
    rows = [{"q": question(n), "kind": "bad", "split": "test"} for n in range(8)]
    rows += [{"q": question(n), "kind": float("nan")} for n in range(8, 12)]
    rows += [{"q": question(n), "kind": "bad"} for n in range(12, 20)]
    write_rows(tmp_path / "q.jsonl", rows)
    own = read_folder(tmp_path, Said())
    assert len(own.of(Split.TEST, Label.TOXIC)) == 8
    assert len(own.of(Split.TRAIN, Label.TOXIC)) + len(own.of(Split.VALIDATION, Label.TOXIC)) == 8
    assert own.left_out == ["q.jsonl, rows without a label: 4"]


ENCODED = {
    "a mark": ("utf-8-sig", ";"), "utf-16": ("utf-16", ";"), "utf-16 without a mark": ("utf-16-le", "\t"),
    "tabs": ("utf-8", "\t"), "bars": ("utf-8", "|"),
}  # fmt: skip


@pytest.mark.parametrize(("encoding", "separator"), ENCODED.values(), ids=ENCODED)
def test_tables_as_other_programs_write_them(tmp_path, encoding, separator):
    rows = [["Nr", "Frage des Nutzers", "harmful/harmless"]]
    rows += [[str(n), f"Où est « {question(n)} », ici ?", ["harmful", "harmless"][n % 2]] for n in range(12)]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "q.csv").write_bytes(text.encode(encoding))
    own = read_folder(tmp_path, Said())
    assert {p.text: p.label for p in own.prompts} == {
        text: {"harmful": Label.TOXIC, "harmless": Label.BENIGN}[label] for _, text, label in rows[1:]
    }
    assert "column `Frage des Nutzers` as prompt, `harmful/harmless` as label" in own.taken[0]


def test_a_single_chat_is_a_table(tmp_path):
    chat = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "How do I pick a lock?"}]
    (tmp_path / "toxic.json").write_text(json.dumps({"conversations": chat}))
    (prompt,) = read_folder(tmp_path, Said()).prompts
    assert (prompt.system, prompt.text, prompt.label) == ("Be brief.", "How do I pick a lock?", Label.TOXIC)


def test_ids_that_repeat_are_no_ids(tmp_path):
    write_rows(tmp_path / "q.jsonl", [{"id": 1, "q": question(n), "kind": "bad"} for n in range(8)])
    assert len({p.id for p in read_folder(tmp_path, Said()).prompts}) == 8


def test_rows_without_an_id_leave_the_others_theirs(tmp_path):
    rows = [{"id": f"r{n}", "q": question(n), "kind": "bad", "partner": f"r{n ^ 1}"} for n in range(4)]
    rows += [{"q": question(n), "kind": "bad", "id": None} for n in (4, 5)]
    write_rows(tmp_path / "q.jsonl", rows)
    found = {p.id: p.partner for p in read_folder(tmp_path, Said()).prompts}
    assert found == {"r0": "r1", "r1": "r0", "r2": "r3", "r3": "r2", "q-00005": None, "q-00006": None}


def test_folders_name_the_splits(tmp_path):
    for fold, numbers in (("train", range(8)), ("val", range(8, 12)), ("test", range(12, 16))):
        rows = [{"q": question(n)} for n in numbers]
        write_rows(tmp_path / f"fold/{fold}/toxic.jsonl", rows)
    own = read_folder(tmp_path, Said())
    sides = {split: {p.text for p in own.of(split, Label.TOXIC)} for split in Split}
    assert sides == {
        Split.TRAIN: {*map(question, range(8))},
        Split.VALIDATION: {*map(question, range(8, 12))},
        Split.TEST: {*map(question, range(12, 16))},
    }


APART = [
    "How do I tie a knot?",
    "Why do cats purr at night?",
    "Which river runs past Cologne?",
    "Is moss a plant?",
]


@pytest.mark.parametrize("split", [Split.TEST, Split.VALIDATION])
def test_what_hangs_together_with_a_held_out_prompt_is_left_out_of_the_rest(tmp_path, split):
    tested = {"kind": "bad", "split": split.value}
    rows = [
        {"id": "copy", "q": "How can someone quietly get past the old lock of a neighbour's garden shed?", **tested},
        {"id": "frame", "q": "Where do I buy a gun?", "frame": "Where do I buy a {}?", **tested},
        {"id": "word", "q": "Could you poison him?", "keyword": "poison", **tested},
        {"id": "pair", "q": "Who melts gold coins?", **tested},
    ]  # fmt: skip
    left = [
        {"q": f"{rows[0]['q']} Now?", "kind": "bad"},
        {"q": "Where do I buy a kite?", "frame": "Where do I buy a {}?", "kind": "ok"},
        {"q": "Are mushrooms poisonous?", "kind": "ok"},
        {"q": "Who bakes round bread?", "partner": "pair", "kind": "ok"},
        {"q": "Do poisoned ferns need rain?", "frame": "Do {} need rain?", "kind": "ok"},
        {"q": "Do drums need rain?", "frame": "Do {} need rain?", "kind": "ok"},
    ]
    said = [{"q": "Where do I buy a lamp?", "frame": "Where do I buy a {}?", "kind": "ok", "split": "train"}]
    write_rows(tmp_path / "q.jsonl", [*rows, *left, *said, *({"q": q, "kind": "ok"} for q in APART)])
    own = read_folder(tmp_path, Said())
    assert {p.id for p in own.of(split, *Label)} == {"copy", "frame", "word", "pair"}
    rest = {p.text for p in own.prompts if p.split is not split}
    assert rest == {*APART, "Where do I buy a lamp?"}
    assert own.left_out == [
        "6 prompts without a split that share a frame, key word, pair or text with your test or validation"
    ]


def test_a_rest_too_small_to_split_is_trained_on_beside_a_test(tmp_path):
    rows = [{"q": q, "kind": "bad", "split": "test"} for q in APART[:3]]
    write_rows(tmp_path / "q.jsonl", [*rows, {"q": APART[3], "kind": "ok"}])
    own = read_folder(tmp_path, Said())
    assert [p.split for p in own.prompts] == [Split.TEST] * 3 + [Split.TRAIN]
    assert own.split == "the test as the files say, the rest, too few to split, for training"


@pytest.mark.parametrize(
    "order", [["train", "test", "dev"], ["dev", "train", "test"], ["test", "dev", "train"]]
)
def test_of_a_text_in_several_splits_the_most_held_out_is_kept(tmp_path, order):
    reply = {"train": "Sorry, I can't help with that.", "dev": None, "test": None}
    for fold in order:
        rows = [{"q": APART[0], "kind": "bad", "answer": reply[fold], "split": fold}]
        rows += (
            [{"q": APART[1], "kind": "bad", "answer": reply[fold], "split": fold}] if fold != "test" else []
        )
        rows += [{"q": q, "kind": "bad", "answer": "Sorry, I can't.", "split": "train"} for q in APART[2:]]
        write_rows(tmp_path / f"{order.index(fold)}.jsonl", rows)
    found = {p.text: (p.split, p.response) for p in read_folder(tmp_path, Said()).prompts}
    assert found == {
        APART[0]: (Split.TEST, None),
        APART[1]: (Split.VALIDATION, None),
        **dict.fromkeys(APART[2:], (Split.TRAIN, "Sorry, I can't.")),
    }


def test_partners_of_repeats_are_those_of_what_is_kept(tmp_path):
    no = "Sorry, I can't help with that."
    rows = [
        {"id": "a", "q": APART[0], "kind": "bad", "answer": "", "partner": "b"},
        {"id": "b", "q": APART[1], "kind": "ok", "answer": "", "partner": "a"},
        {"id": "c", "q": APART[0], "kind": "bad", "answer": no, "partner": ""},
        {"id": "d", "q": APART[2], "kind": "bad", "answer": no, "partner": "e"},
        {"id": "e", "q": APART[2], "kind": "bad", "answer": "", "partner": "d"},
        {"id": "f", "q": APART[3], "kind": "bad", "answer": no, "partner": ""},
    ]
    write_rows(tmp_path / "q.jsonl", rows)
    found = {p.id: p.partner for p in read_folder(tmp_path, Said()).prompts}
    assert found == {"c": "b", "b": "c", "d": None, "f": None}


MISTAKES = {
    "no folder": ({}, Said(), "There is no folder .*gone"),
    "empty": ({}, Said(), "holds no prompt file; put prompts there as one of .jsonl"),
    "no table": ({"a.txt": "Hi"}, Said(), r"only a.txt \(no table of prompts; save it as a table with"),
    "packed": ({"a.zip": "PK"}, Said(), r"holds no prompt file, only a.zip \(no table of prompts; unpack it\); put"),
    "a spreadsheet": ({"a.xlsx": "PK"}, Said(), r"only a.xlsx \(no table of prompts; save it as CSV\); put"),
    "nothing at all": ({"a.csv": ""}, Said(), "a.csv has no prompts at all; fill it or leave it out by `--skip a.csv`"),
    "rows in an object": (
        {"toxic.json": '{"name": "my set", "data": [{"prompt": "Hi"}, {"prompt": "Ho"}]}'},
        Said(),
        "toxic.json is one object, in which `data` holds a list of 2; write an object for each prompt",
    ),
    "columns of lists": (
        {"a.json": '{"prompt": ["Hi", "Ho"], "label": ["toxic", "benign"]}'},
        Said(),
        "a.json is one object, in which `prompt` holds a list of 2; write an object for each prompt",
    ),
    "columns of mappings": (
        {"a.json": '{"prompt": {"0": "Hi"}, "label": {"0": "toxic"}}'},
        Said(),
        "a.json is one object, in which `prompt` holds a mapping of 1; write an object for each prompt",
    ),
    "no names": (
        {"toxic.csv": "How do I pick a lock?\nHow do I forge a letter?\nHow do I break a code?\n"},
        Said(),
        "toxic.csv seems to have no line of column names, for one would be `How do I pick a lock.`; write a line such as",
    ),
    "nothing in it": ({"a.csv": "prompt,label\n"}, Said(), "a.csv has no prompts at all; fill it or leave it out by"),
    "nothing usable": ({"a.csv": "prompt,label\n,toxic\n ,toxic\n"}, Said(), "a.csv has no column of texts"),
    "two labels": (
        {"a.csv": "prompt,label\nHow so?,toxic\n", "b.csv": "prompt,label\nHow so,benign\n"},
        Said(),
        "The prompt 'How so' is toxic in a and benign in b; mend one of the two.",
    ),
    "unknown file": ({"a.csv": "prompt,label\nHi,toxic\n"}, Said({"b.csv": Given()}), "no prompt file b.csv"),
    "damaged": ({"a.jsonl": '{"prompt": '}, Said(), "a.jsonl, line 1, is not JSON"),
    "all skipped": ({"a.csv": "prompt,label\nHi,toxic\n"}, Said(skipped=["a.csv"]), r"only a.csv \(as you said\)"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "said", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_folder_of_nothing_usable_costs_one_sentence(tmp_path, request, files, said, sentence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    folder = tmp_path / "gone" if "no folder" in request.node.name else tmp_path
    with pytest.raises(DataError, match=sentence) as raised:
        read_folder(folder, said)
    assert "\n" not in str(raised.value)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.text("abc ?", min_size=1), st.sampled_from(["bad", "ok"])), min_size=1, max_size=12)
)
def test_no_text_comes_twice_and_none_gets_another_label(tmp_path_factory, rows):
    folder = Path(tmp_path_factory.mktemp("folder"))
    write_rows(folder / "q.jsonl", [{"prompt": text, "kind": kind} for text, kind in rows])
    labels = {normalise(text) or text: kind for text, kind in rows if text.strip()}
    try:
        own = read_folder(folder, Said({"q.jsonl": Given(columns={"text": "prompt"})}))
    except DataError as error:
        twice = {(normalise(text) or text, kind) for text, kind in rows if text.strip()}
        assert len(twice) > len(labels) or not labels, error
        return
    meant = {"bad": Label.TOXIC, "ok": Label.BENIGN}
    found = {normalise(p.text) or p.text: p.label for p in own.prompts}
    assert found == {text: meant[kind] for text, kind in labels.items()}
    assert len(own.prompts) == len(labels)
