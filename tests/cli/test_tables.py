"""How a file's columns and labels are named on the command line, on every verb that takes a set."""

import json

import pytest
import typer

from discernment.cli.main import app
from discernment.cli.options import load_sets, parse_reading, parse_set
from discernment.errors import RecipeError
from discernment.prompts import Label

SET_PARAMETERS = {"sets", "names", "name", "seeds"}
READING = {"column", "fixed_label", "label_map", "encoding"}


def verbs(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command.whole()


def test_every_verb_that_takes_a_set_takes_its_columns():
    found = {path: {p.name for p in command.params} for path, command in verbs(typer.main.get_command(app))}
    taking = {path for path, names in found.items() if names & SET_PARAMETERS}
    assert {path[-1] for path in taking} == {
        *("refine", "align", "evaluate", "diagnose", "show", "check", "split", "generate", "export"),
    }
    assert all(found[path] >= READING for path in taking)
    others = {path for path, names in found.items() if names & READING} - taking
    assert others == {("init",)}  # which takes a folder, and these for each of its files


@pytest.fixture
def table(tmp_path):
    (tmp_path / "own.csv").write_bytes("question;harm\nTöte den Prozess?;0\nKill him.;1\n".encode("cp1252"))


TEXT = ["--column", "text=question", "--encoding", "cp1252"]
READ = [*TEXT, "--column", "label=harm"]


@pytest.mark.usefixtures("table")
def test_a_table_is_read_as_the_options_say(invoke, tmp_path):
    code, output = invoke("prompts", "show", "own.csv", *READ, "--label-map", "1=toxic, 0=SEEMINGLY_TOXIC")
    assert code == 0
    assert "Töte den Prozess?" in output
    assert "2 prompts (1 toxic, 1 seemingly_toxic)" in output
    code, output = invoke("prompts", "show", "own.csv", *TEXT, "--fixed-label", "Toxic")
    assert code == 0
    assert "2 prompts (2 toxic)" in output
    code, _ = invoke(
        "prompts", "split", "own.csv", *TEXT, "--fixed-label", "benign", "--out", "parts", "--train", "0.5",
        "--validation", "0", "--test", "0.5",
    )  # fmt: skip
    assert code == 0
    [row] = map(json.loads, (tmp_path / "parts/test.jsonl").read_text().splitlines())
    assert row["label"] == "benign"


@pytest.mark.usefixtures("table")
def test_tables_stand_beside_other_sets(invoke, tmp_path):
    code, _ = invoke(
        "prompts", "export", "own.csv", "starter/toxic:validation", "--out", "out",
        *READ, "--label-map", "1=toxic,0=seemingly_toxic",
    )  # fmt: skip
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "out/over_refusal.jsonl").read_text().splitlines()]
    own = [row for row in rows if row["metadata"]["benchmark"] == "own.csv"]
    assert [(row["input"], row["metadata"]["label"]) for row in own] == [
        ("Töte den Prozess?", "seemingly_toxic"),
        ("Kill him.", "toxic"),
    ]
    assert len(rows) == 2 + 34


@pytest.mark.usefixtures("table")
def test_what_is_given_is_for_tables_alone():
    reading = parse_reading(["own.csv", "starter/toxic"], ["text=question"], Label.TOXIC, None, "cp1252")
    joined = load_sets(["own.csv", "starter/toxic:validation"], "all", reading)
    assert joined.texts[:2] == ["Töte den Prozess?", "Kill him."]
    assert len(joined) == 2 + 34
    hub = parse_reading(["hub:some/set", "own.csv"], None, None, "1=toxic", "cp1252")
    assert parse_set("hub:some/set", hub).encoding is None
    assert parse_set("own.csv", hub).encoding == "cp1252"


@pytest.mark.parametrize(
    ("sets", "arguments", "message"),
    [
        (
            ["starter/toxic"],
            [["text=q"], None, None, None],
            "--column is for files and sets of the hub, and none is",
        ),
        (
            [],
            [None, Label.TOXIC, None, None],
            "--fixed-label is for files and sets of the hub, and none is named",
        ),
        (["hub:a/b"], [None, None, None, "cp1252"], "--encoding is for files, and none is named"),
        (["a.csv"], [["question"], None, None, None], "--column 'question' must be ROLE=NAME"),
        (["a.csv"], [None, None, "1=toxic,0", None], "--label-map '0' must be LABEL=MEANING"),
        (["a.csv"], [["text=a", "text=b"], None, None, None], "--column gives 'text' twice"),
    ],
)
def test_mistakes(sets, arguments, message):
    with pytest.raises(RecipeError, match=message):
        parse_reading(sets, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([["txt=q"], None, None, None], r"a\.csv: .*'text'"),
        ([None, None, "1=harmful", None], r"a\.csv: .*'toxic'"),
    ],
)
def test_wrong_roles_and_labels(arguments, message):
    with pytest.raises(RecipeError, match=message):
        parse_set("a.csv", parse_reading(["a.csv"], *arguments))
