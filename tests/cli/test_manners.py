"""How the command behaves towards a terminal, a pipe and a script."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.cells import cell_len

from discernment.cli.examples import EXAMPLES
from discernment.cli.main import app
from discernment.files import read_json
from terminal import COLOURS, DISCERN, ESCAPES, in_terminal, without_reader

NUMBERS = {"run", "plan", "recipes", "sweep", "evaluate", "diagnose", "compare"}
NUMBERS |= {"prompts list", "prompts check", "prompts split", "judges calibrate", "judges audit"}
REPEATED = [
    "Tell me a story about the sea and its fish.",
    "Tell me a story about the sea and its fish, please.",
]


def late_verbs(group=None, path=()):
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from late_verbs(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def read_arguments(command, name, arguments, parent=None):
    """Read arguments down to the verb, and call nothing; the last context."""
    context = command.make_context(name, list(arguments), parent=parent)
    if not hasattr(command, "commands"):
        return context
    left = [*context._protected_args, *context.args]
    name, command, left = command.resolve_command(context, left)
    return read_arguments(command, name, left, context)


@pytest.fixture
def repeated(tmp_path):
    rows = [
        {"prompt": text, "label": "benign", "split": split}
        for text, split in zip(REPEATED, ["train", "test"], strict=True)
    ]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("arguments", ["--version", "recipes", "prompts list"])
def test_a_closed_output_is_no_mistake(arguments):
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(DISCERN)} {arguments} >&-"
    found = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("arguments", [("recipes",), ("prompts", "list")])
def test_tables_fit_a_terminal_and_break_no_word(arguments, tmp_path):
    code, written = in_terminal(*arguments)
    piped = subprocess.run(
        [sys.executable, "-c", DISCERN, *arguments], capture_output=True, text=True, check=True
    )
    assert code == 0
    assert max(map(cell_len, ESCAPES.sub("", written).splitlines())) <= 80
    words = {word for line in piped.stdout.splitlines() for cell in line.split("\t") for word in cell.split()}
    assert len(words) > 60
    assert words <= set(ESCAPES.sub("", written).split())


def test_a_pipe_gets_rows_with_tabs_between_and_nothing_else():
    found = subprocess.run(
        [sys.executable, "-c", DISCERN, "prompts", "list"], capture_output=True, text=True, check=True
    )
    header, *rows = [line.split("\t") for line in found.stdout.splitlines()]
    assert header == ["set", "labels", "better", "rows", "licence", "where"]
    assert len(rows) > 20
    assert {len(row) for row in rows} == {6}
    assert rows[0][:4] == ["starter/pairs", "toxic seemingly_toxic", "refuse answer", "768"]
    assert "DISCERNMENT_DATA" in found.stderr
    assert "\x1b" not in found.stdout + found.stderr


def test_every_verb_with_numbers_gives_them_as_json():
    flags = {path: {o for p in verb.whole().params for o in p.opts} for path, verb in late_verbs()}
    assert {path for path, options in flags.items() if "--json" in options} == NUMBERS
    assert all({"--quiet", "-q"} <= options for options in flags.values())


@pytest.mark.usefixtures("repeated")
def test_json_is_one_document_and_quiet_says_nothing_besides(discern):
    code, output, errors = discern("prompts", "list", "--json", "-q")
    assert (code, errors) == (0, "")
    assert {"set": "starter/pairs", "rows": 768}.items() <= json.loads(output)[0].items()
    code, output, errors = discern("recipes", "--json", "--quiet")
    assert (code, errors) == (0, "")
    assert "quickstart" in [one["name"] for one in json.loads(output)]
    code, output, _ = discern("prompts", "check", "twice.jsonl", "--json")
    assert code == 1
    report = json.loads(output)
    assert report["clean"] is False
    [repeat] = report["duplicates"]
    assert (repeat["likeness"], repeat["similarity"]) == ("near", 10 / 11)
    assert report["label_leaks"] is None
    assert "Label leaks cannot be measured" in report["unmeasured"]
    code, output, _ = discern("prompts", "split", "starter/toxic", "--out", "parts", "--json")
    assert code == 0
    assert sum(part["rows"] for part in json.loads(output)) == 306


@pytest.mark.usefixtures("files")
def test_progress_is_no_result(discern):
    asked = ["evaluate", "tiny", "-s", "pairs.jsonl", "-O", "max_new_tokens=2", "-O", "unscored_limit=1"]
    code, output, errors = discern(*asked, "-o", "loud")
    assert code == 0
    assert output.startswith("\ttiny\n")
    assert "evaluate ..." in errors
    assert "Samples: loud/samples.jsonl" in errors
    code, output, errors = discern(*asked, "-o", "still", "--json", "--quiet")
    assert (code, errors) == (0, "")
    assert json.loads(output) == read_json(Path("still/results.json"))
    code, output, errors = discern("compare", "loud", "still", "--json", "-q")
    assert (code, errors) == (0, "")
    assert json.loads(output)["methods"] == ["loud", "still"]


@pytest.mark.parametrize(
    "arguments",
    ["prompts list", "prompts list --json", "recipes quickstart", "--version", "--help", "run -h"],
)
def test_a_closed_pipe_ends_in_silence(arguments):
    assert without_reader(*arguments.split()) == (141, "")


@pytest.mark.usefixtures("repeated")
@pytest.mark.parametrize("arguments", ["prompts check twice.jsonl", "run --help"])
def test_colours_stay_away_where_they_are_not_wanted(arguments):
    coloured = in_terminal(*arguments.split())
    plain = in_terminal(*arguments.split(), NO_COLOR="1")
    assert COLOURS.search(coloured[1])
    assert not COLOURS.search(plain[1])
    assert plain[0] == coloured[0]
    assert ESCAPES.sub("", plain[1]) == ESCAPES.sub("", coloured[1])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("discern ev", "evaluate"), ("discern prompts ch", "check"), ("discern run --js", "--json")],
)
def test_the_shell_completes(typed, expected):
    environment = {
        **os.environ,
        "_DISCERN_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    found = subprocess.run(
        [sys.executable, "-c", DISCERN], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == [expected]


def test_every_help_ends_with_examples_that_can_be_read():
    command = typer.main.get_command(app)
    groups = {"": command, **{name: c for name, c in command.commands.items() if hasattr(c, "commands")}}
    helps = {path: group.epilog for path, group in groups.items()}
    helps |= {path: verb.whole().epilog for path, verb in late_verbs()}
    assert len(helps) == len(EXAMPLES) == 26
    for path, epilog in helps.items():
        title, *examples = epilog.split("\n\n")
        assert title == "Examples:"
        assert 1 <= len(examples) <= 2
        for example in examples:
            assert len(example) <= 78
            name, *arguments = shlex.split(example)
            context = read_arguments(command, name, arguments)
            assert context.command_path.removeprefix("discern").strip().startswith(path)
