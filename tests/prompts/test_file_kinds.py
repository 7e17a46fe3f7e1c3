"""Files as other programs write them: read as meant, or refused in one sentence that says what to do."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas
import pyarrow
import pytest
from pyarrow import parquet as parquet_files

from discernment.errors import DataError
from discernment.prompts import Label, PromptSource, Turn, load_source, load_sources

ROWS = [
    {"prompt": "Töte den Prozess, „sofort“?", "label": "seemingly_toxic", "response": "Gern; so: kill 7."},
    {"prompt": 'Kill "him"; now,\nplease', "label": "toxic", "response": "No, I won't."},
]
READ = [(row["prompt"], row["label"], row["response"]) for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
WESTERN = LINES.replace("„", "'").replace("“", "'")
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Go on."},
]


def table(separator: str = ",", **dialect: Any) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(ROWS[0]), delimiter=separator, **dialect)
    writer.writeheader()
    writer.writerows(ROWS)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(buffer)
    return buffer.getvalue()


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def asked(prompt: Any) -> bytes:
    return lines({"prompt": "ok", "label": "toxic"}, {"prompt": prompt, "label": "toxic"})


class Kind(NamedTuple):
    """A kind of file: its name, what it holds, how it is to be read, and what is wrong with it if anything is."""

    what: str
    name: str
    content: bytes
    options: dict[str, Any] | None = None
    refused: str | None = None


READABLE = [
    Kind("JSON lines", "a.jsonl", LINES.encode()),
    Kind("JSON lines of Windows", "a.jsonl", LINES.replace("\n", "\r\n").encode()),
    Kind("JSON lines with empty ones", "a.ndjson", f"\n{LINES}\n\n".encode()),
    Kind("byte-order mark", "a.jsonl", LINES.encode("utf-8-sig")),
    Kind("UTF-16 with a mark", "a.jsonl", LINES.encode("utf-16")),
    Kind("UTF-16 without", "a.jsonl", LINES.encode("utf-16-le")),
    Kind("UTF-16 that is named", "a.jsonl", LINES.encode("utf-16-be"), {"encoding": "utf-16-be"}),
    Kind("cp1252 that is named", "a.jsonl", LINES.encode("cp1252"), {"encoding": "cp1252"}),
    Kind("CSV", "a.csv", table().encode()),
    Kind("CSV of a spreadsheet", "a.csv", table(";", quoting=csv.QUOTE_ALL).encode("utf-8-sig")),
    Kind("CSV with semicolons", "a.csv", table(";").encode()),
    Kind("CSV that names its separator", "a.csv", f"sep=;\r\n{table(';')}".encode("utf-16")),
    Kind("CSV with bars", "a.csv", table("|").encode()),
    Kind("TSV", "a.tsv", table("\t").encode()),
    Kind("CSV with tabs", "a.csv", table("\t").encode("utf-16")),
    Kind("CSV of pandas", "a.csv", pandas.DataFrame(ROWS).to_csv(index=True).encode()),
    Kind("JSON array", "a.json", json.dumps(ROWS, indent=2).encode()),
    Kind("JSON array on one line", "a.json", json.dumps(ROWS).encode()),
    Kind("JSON array called lines", "a.jsonl", json.dumps(ROWS).encode()),
    Kind("JSON lines called JSON", "a.json", LINES.encode()),
    Kind("Parquet", "a.parquet", parquet(ROWS)),
    Kind("gzip", "a.jsonl.gz", gzip.compress(LINES.encode())),
    Kind("gzip without saying so", "a.jsonl", gzip.compress(LINES.encode())),
    Kind("zstd", "a.csv.zst", zstd(table(";").encode())),
    Kind("bzip2", "a.json.bz2", bz2.compress(json.dumps(ROWS).encode())),
]


def no_text() -> bytes:
    """A column of texts with bytes that are none."""
    array = pyarrow.StringArray.from_buffers(
        1, pyarrow.array([0, 2], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"\xff\xfe")
    )
    buffer = io.BytesIO()
    parquet_files.write_table(pyarrow.table({"prompt": array}), buffer)
    return buffer.getvalue()


NO_TURNS = "needs both a `role` .system, user or assistant. and a `content` that is text; mend the turn"
REFUSED = [
    Kind(
        "cp1252", "a.jsonl", LINES.encode("cp1252"), {}, r"line 1, is not UTF-8 .*name the `encoding`.*cp1252"
    ),
    Kind("wrong encoding", "a.csv", b"prompt\n\x81", {"encoding": "cp1252"}, "line 2, .*name the right `enc"),
    Kind(
        "unknown encoding", "a.csv", b"prompt", {"encoding": "latin-99"}, "no encoding 'latin-99'.* name one"
    ),
    Kind("encoding of Parquet", "a.parquet", parquet(ROWS), {"encoding": "utf-8"}, "leave `encoding` out"),
    Kind(
        "torn gzip", "a.csv.gz", gzip.compress(table().encode())[:-9], {}, "cannot be unpacked .*pack it anew"
    ),
    Kind("torn Parquet", "a.parquet", parquet(ROWS)[:-9], {}, "cannot be read as Parquet .*save it anew"),
    Kind("Parquet that is no UTF-8", "a.parquet", no_text(), {}, "cannot be read as Parquet .*save it anew"),
    Kind(
        "no encoding of texts",
        "a.csv",
        b"prompt\nA",
        {"encoding": "undefined"},
        "cannot be read as 'undefined'",
    ),
    Kind("not packed", "a.csv.gz", b"prompt", {}, "not packed as its name says; rename it"),
    Kind(
        "torn array", "a.json", json.dumps(ROWS, indent=2).encode()[:-5], {}, "line 11, is not JSON .*mend it"
    ),
    Kind("torn line", "a.jsonl", lines(ROWS[0]) + b'{"prompt": ', {}, "line 2, is not JSON .*mend it"),
    Kind(
        "a list a line", "a.jsonl", b'["a"]\n["b"]\n', {}, "line 1, is not a JSON object; write each prompt"
    ),
    Kind("deep", "a.jsonl", b"[" * 100_000, {}, "line 1, is not JSON .*mend it"),
    Kind(
        "commas",
        "a.csv",
        b"prompt,label\nOh, no,toxic\n",
        {},
        "more fields than its header .*quote the texts",
    ),
    Kind("comma", "a.csv", b"prompt,label\nA,toxic\nOh, no,toxic\n", {}, "line 3, saw 3.*quote the texts"),
    Kind(
        "open quote", "a.csv", b'prompt,label\n"A,toxic\nB,toxic\n', {}, "line 3, has a quote that is neither"
    ),
    Kind(
        "quote that takes rows in",
        "a.csv",
        b'prompt,label\n"A,seemingly_toxic\nB,toxic\nWhat is a "hit",benign\nD,benign\n',
        {},
        "line 4, has a quote that is neither closed nor doubled.*begins with a quote there or above",
    ),
    Kind(
        "no label column",
        "a.csv",
        b"prompt,x\nA,7\n",
        {},
        r"row 1, has no label in column 'label' \(columns: prompt, x\)",
    ),
    *(
        Kind(
            f"no {role}",
            "a.csv",
            b"prompt,label\nA,toxic\n",
            {"columns": {role: "nope"}},
            rf"has no column 'nope' for the {role} \(columns: prompt, label\); name one of these",
        )
        for role in ("category", "partner", "split", "id", "source", "response")
    ),
    Kind(
        "column twice", "a.csv", b"prompt,label,prompt\na,toxic,b\n", {}, "two columns 'prompt'; rename one"
    ),
    Kind(
        "column missing",
        "a.csv",
        b"q;label\na;toxic\n",
        {},
        r"row 1, .*columns: q, label.*name the right col",
    ),
    Kind(
        "spreadsheet",
        "a.xlsx",
        b"PK\x03\x04",
        {},
        r"no kind that is read; save it as one of \.jsonl, .*\.csv",
    ),
    Kind("number", "a.jsonl", asked(7), {}, "line 2, has the number 7 for a prompt.*write it as text"),
    Kind("truth", "a.jsonl", asked(True), {}, "line 2, has the truth value True for a prompt.*write it as"),
    Kind("list", "a.jsonl", asked(["Hi"]), {}, f"line 2, column 'prompt', turn 1, {NO_TURNS}"),
    Kind("no turn", "a.jsonl", asked([]), {}, "line 2, has a list for a prompt.*as a list of turns"),
    Kind(
        "mapping", "a.jsonl", asked({"role": "user"}), {}, "line 2, has a mapping for a prompt.*write it as"
    ),
    Kind(
        "last word", "a.jsonl", asked(TURNS[:3]), {}, "ends with a turn of the assistant; .*into `response`"
    ),
    Kind(
        "system alone", "a.jsonl", asked(TURNS[:1]), {}, "ends with a turn of the system; the user must have"
    ),
    Kind("tool", "a.jsonl", asked([{"role": "tool", "content": "7"}]), {}, f"turn 1, {NO_TURNS}"),
    Kind("picture", "a.jsonl", asked([{"role": "user", "content": [{"type": "image"}]}]), {}, NO_TURNS),
    Kind(
        "two users",
        "a.jsonl",
        asked([TURNS[1], TURNS[3]]),
        {},
        r"out of order \(user, user\); user and assis",
    ),
    Kind("late system", "a.jsonl", asked([TURNS[1], TURNS[0], TURNS[3]]), {}, "can only stand before all of"),
    Kind("no chat", "a.csv", b"messages,label\nHi,toxic\n", {}, "row 1, has a text that is no list of turns"),
    Kind(
        "reply list",
        "a.jsonl",
        lines({"prompt": "x", "label": "toxic", "response": ["No."]}),
        {},
        "line 1, has a list for a response.*write the reply as text",
    ),
    Kind(
        "reply mapping",
        "a.jsonl",
        lines({"prompt": "x", "label": "toxic", "response": {"a": 1}}),
        {},
        "line 1, has a mapping for a response",
    ),
    Kind(
        "reply number",
        "a.json",
        json.dumps([{"prompt": "x", "label": "toxic", "response": 4}]).encode(),
        {},
        "row 1, has the number 4 for a response",
    ),
    Kind("label", "a.csv", b"prompt,label\nx,1\n", {}, "has the label '1'; .*`label_map` must say which"),
]


def read(folder: Path, kind: Kind) -> list[tuple[str, str, str | None]]:
    path = folder / kind.name
    path.write_bytes(kind.content)
    return [
        (p.text, p.label.value, p.response)
        for p in load_source(PromptSource(set=str(path), **(kind.options or {})))
    ]


def test_a_reply_of_spaces_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,label,response\nA,benign,"  "\nB,benign," Yes."\n', "utf-8")
    assert [p.response for p in load_source(PromptSource(set=str(tmp_path / "a.csv")))] == [None, " Yes."]


def test_long_texts_and_doubled_quotes_are_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'prompt,label\n"say ""hi"" twice",benign\n"{long}x",toxic\n', "utf-8")
    assert [p.text for p in load_source(PromptSource(set=str(tmp_path / "a.csv")))] == [
        'say "hi" twice',
        f"{long}x",
    ]


def test_there_are_many_kinds() -> None:
    assert len({kind.what for kind in READABLE + REFUSED}) == len(READABLE) + len(REFUSED) >= 28


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.what)
def test_a_file_is_read_as_it_is_meant(tmp_path: Path, kind: Kind) -> None:
    assert read(tmp_path, kind) == READ


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.what)
def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(DataError, match=kind.refused) as told:
        read(tmp_path, kind)
    sentence = str(told.value)
    assert str(tmp_path / kind.name) in sentence
    assert sentence.endswith(".") and "\n" not in sentence and ". " not in sentence.replace("e.g. ", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines({"prompt": TURNS, "label": "toxic"})),
        ("a.jsonl", lines({"messages": TURNS, "label": "toxic"})),
        ("a.parquet", parquet([{"messages": TURNS, "label": "toxic"}])),
        ("a.csv", pandas.DataFrame([{"messages": json.dumps(TURNS), "label": "toxic"}]).to_csv().encode()),
        (
            "a.json",
            json.dumps(
                [
                    {
                        "prompt": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in TURNS],
                        "label": "toxic",
                    }
                ]
            ).encode(),
        ),
    ],
)
def test_a_chat_is_a_conversation(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    [prompt] = load_source(str(tmp_path / name))
    assert (prompt.text, prompt.system) == ("Go on.", "Be kind.")
    assert prompt.earlier == (Turn(role="user", content="Hi"), Turn(role="assistant", content="Hello."))
    assert prompt.turns == TURNS


def test_turns_as_sharegpt_has_them(tmp_path: Path) -> None:
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in TURNS]
    rows = [
        {"prompt": turns, "label": "toxic", "response": {"from": "gpt", "value": "On."}},
        {"prompt": turns, "label": "toxic", "response": {"role": "assistant", "content": [{"text": "On."}]}},
        {"prompt": turns, "label": "toxic", "response": {"from": "gpt", "value": ""}},
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    prompts = list(load_source(str(tmp_path / "a.jsonl")))
    assert [p.turns for p in prompts] == [TURNS] * 3
    assert [p.response for p in prompts] == ["On.", "On.", None]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"from": "tool", "value": "7"}]},
        {"prompt": [{"role": "human", "content": "Hi"}]},
        {"prompt": [{"from": "human", "value": 7}]},
        {"prompt": "Hi", "response": {"from": "human", "value": "On."}},
        {"prompt": "Hi", "response": {"from": "gpt"}},
    ],
)
def test_what_only_looks_like_turns(row: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"label": "toxic", **row}))
    with pytest.raises(DataError, match=rf"line 1, .*({NO_TURNS}|has a mapping for a response)"):
        load_source(str(tmp_path / "a.jsonl"))


def test_one_user_turn_is_a_plain_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"prompt": TURNS[1:2], "label": "toxic"}))
    (tmp_path / "b.jsonl").write_bytes(
        lines({"prompt": "Hi", "label": "toxic", "id": "a-00001", "source": "a"})
    )
    chat, plain = (load_source(str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl"))
    assert chat[0] == plain[0]
    assert chat.asked == ["Hi"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path, rows: path.with_suffix(".jsonl").write_bytes(lines(*rows)),
        lambda path, rows: pandas.DataFrame(rows).to_csv(path.with_suffix(".csv")),
        lambda path, rows: pandas.DataFrame(rows).to_csv(path.with_suffix(".csv"), na_rep="nan"),
        lambda path, rows: pandas.DataFrame(rows).to_parquet(path.with_suffix(".parquet")),
    ],
    ids=["jsonl", "csv", "csv-nan", "parquet"],
)
def test_no_number_is_no_response(
    tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    write(tmp_path / "a", [{"prompt": "x", "label": "toxic", "response": r} for r in (float("nan"), "No.")])
    [path] = tmp_path.iterdir()
    assert [p.response for p in load_source(str(path))] == [None, "No."]


def test_words_that_look_like_values_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,prompt,label\n007,NA,toxic\n1.0,null,benign\n1e3,True,benign\n")
    assert [(p.id, p.text) for p in load_source(str(tmp_path / "a.csv"))] == [
        ("007", "NA"),
        ("1.0", "null"),
        ("1e3", "True"),
    ]


def test_a_long_field_is_read(tmp_path: Path) -> None:
    text = "a word, " * 40_000
    (tmp_path / "a.csv").write_text(f'prompt;label\n"{text}";toxic\n')
    assert load_source(str(tmp_path / "a.csv")).texts == [text]
    assert len(text) > 2 * 131_072


@pytest.mark.parametrize(
    ("label_map", "values"),
    [
        ({True: "toxic", False: "benign"}, [(True, False), ("yes", "no"), ("True", "false"), ("ON", "Off")]),
        ({"yes": "Toxic", "no": "Benign"}, [(True, False), ("Yes", "NO")]),
        ({1: "toxic", 0: "benign"}, [(1, 0), (1.0, 0.0), ("1", "0"), ("1.0", "0.")]),
        ({1.0: "toxic", 0.0: "benign"}, [(1, 0), ("1", "0")]),
        ({"Harmful": "toxic", "fine": "benign"}, [("harmful", "FINE"), (" Harmful ", "fine")]),
        ({}, [("TOXIC", "Benign"), ("Toxic", "benign ")]),
    ],
)
def test_labels_mean_the_same_however_they_are_written(
    tmp_path: Path, label_map: dict[Any, str], values: list[tuple[Any, Any]]
) -> None:
    rows = [{"prompt": "x", "label": value} for pair in values for value in pair]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    source = PromptSource.model_validate({"set": str(tmp_path / "a.jsonl"), "label_map": label_map})
    assert [p.label for p in load_source(source)] == [Label.TOXIC, Label.BENIGN] * len(values)


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_partners_that_pandas_wrote_as_fractions_are_found(tmp_path: Path, kind: str) -> None:
    table = pandas.DataFrame(
        {
            "id": [1, 2, 3],
            "prompt": ["Kill a man.", "Kill a process.", "Sing."],
            "label": ["toxic", "seemingly_toxic", "benign"],
            "partner": [2, 1, None],
        }
    )
    file = tmp_path / f"pairs.{kind}"
    if kind == "csv":
        table.to_csv(file, index=False)
    elif kind == "parquet":
        table.to_parquet(file)
    else:
        table.to_json(file, orient="records", lines=True)
    found = load_source(PromptSource(set=str(file)))
    assert [(p.id, p.partner) for p in found] == [("1", "2"), ("2", "1"), ("3", None)]


def test_a_label_map_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"says twice, and not the same, what '1\.0' means"):
        PromptSource.model_validate({"set": "a.csv", "label_map": {1: "toxic", "1.0": "benign"}})
    assert Label("Seemingly Toxic") is Label("SEEMINGLY-TOXIC") is Label.SEEMINGLY_TOXIC


def test_files_of_one_name_are_joined(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "train.jsonl" for folder in "abc"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(
            lines({"prompt": "Hi", "label": "benign"}, {"prompt": path.parent.name, "label": "toxic"})
        )
    joined = load_sources([str(path) for path in paths], "all")
    assert joined.texts == ["Hi", "a", "Hi", "b", "Hi", "c"]
    assert [p.id for p in joined][1::2] == [
        "train/train-00002",
        "train-2/train-00002",
        "train-3/train-00002",
    ]
    with pytest.raises(DataError, match="repeated prompt ids"):
        load_sources([str(paths[0]), str(paths[0])], "twice")
