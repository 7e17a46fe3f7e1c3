"""The command as a whole: its help, its version, and that a mistake costs one sentence."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import discernment
from discernment.cli.main import app

VERBS = (
    "init",
    "run",
    "plan",
    "recipes",
    "sweep",
    "refine",
    "align",
    "evaluate",
    "diagnose",
    "compare",
    "report",
    "export",
    "publish",
    "chat",
    "prompts",
    "judges",
)


HEAVY = {
    *("torch", "transformers", "datasets", "trl", "peft", "sklearn", "scipy", "matplotlib"),
    *("numpy", "pandas", "pyarrow", "huggingface_hub", "tokenizers", "safetensors", "py3langid", "jinja2"),
}
READS_OPTIONS = {"pydantic", "yaml", "discernment.prompts", "discernment.cli.options", "discernment.cli.run"}


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        ("--help", HEAVY | READS_OPTIONS),
        ("prompts --help", HEAVY | {"discernment.prompts", "discernment.cli.prompts"}),
        ("--version", HEAVY | {"rich", "discernment.prompts", "discernment.cli.run"}),
        ("init --help", HEAVY | {"discernment.runs.first_recipe", "rich.progress"}),
        ("run --help", HEAVY | {"discernment.cli.evaluate", "rich.progress"}),
        ("prompts list", HEAVY | {"discernment.cli.prompts.check", "rich.progress"}),
    ],
)
def test_what_tells_of_the_command_loads_nothing_heavy(arguments, absent, tmp_path):
    code = (
        f"import sys; sys.argv = ['discern', *{arguments.split()!r}]\n"
        "from discernment.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print('loaded:', *sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    said, _, loaded = found.stdout.rpartition("loaded: ")
    assert len(said) > 10
    assert "discernment.cli.main" in loaded.split()
    assert not absent & set(loaded.split())


def test_help_names_every_verb(discern):
    code, output, _ = discern("--help")
    assert code == 0
    for verb in VERBS:
        assert re.search(rf"^\W*{verb}  +[A-Z]", output, re.MULTILINE), verb


def test_the_lines_of_help_are_the_first_of_the_verbs():
    groups = [typer.main.get_command(app)]
    late = []
    for group in groups:
        for command in group.commands.values():
            (groups if hasattr(command, "commands") else late).append(command)
    assert len(late) == 23
    for command in late:
        whole = command.whole()
        assert (command.name, command.help) == (whole.name, whole.help.partition("\n")[0])


def test_every_verb_has_help(discern):
    for verb in VERBS:
        code, output, _ = discern(verb, "--help")
        assert code == 0
        assert verb in output
    assert discern("prompts", "list")[0] == 0
    assert discern("nothing")[0] == 2
    assert discern("refine", "tiny")[0] == 2


def test_version(discern):
    assert discernment.__version__ == "0.1.0"
    assert discern("--version") == (0, "discernment 0.1.0\n", "")


def test_python_dash_m_is_the_same_command(discern, tmp_path):
    def as_module(*arguments):
        command = [sys.executable, "-m", "discernment", *arguments]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return found.returncode, found.stdout, found.stderr

    assert as_module("--version") == discern("--version")
    mistaken = as_module("compare", "gone")
    assert mistaken == discern("compare", "gone")
    assert mistaken[0] == 2


MISTAKES = {
    "missing recipe": ("run none.yaml", "There is no recipe none.yaml."),
    "missing prompts": ("evaluate tiny -s none.jsonl -o o", "There is no file none.jsonl."),
    "empty after filtering": (
        "evaluate tiny -s pairs.jsonl:test -o o",
        "pairs has no prompt with split test; it has 6 toxic and 6 seemingly_toxic.",
    ),
    "row without a prompt": ("align tiny -s row.jsonl -o o", "row.jsonl, line 2, has no prompt in column"),
    "unknown label": (
        "refine tiny --layer 2 -s label.jsonl -o o",
        "label.jsonl, line 1, has the label 'harmful'; it must be one of toxic, seemingly_toxic, benign",
    ),
    "unknown set": ("evaluate tiny -s xtest -o o", "There is no prompt set 'xtest'; .*'xstest'"),
    "unknown model": ("evaluate no/model -s pairs.jsonl -o o", "The model 'no/model' cannot be loaded"),
    "missing folder": ("chat ./gone", "There is no model folder ./gone."),
    "no model folder": ("chat full", "The folder full holds no model: it has no config.json."),
    "layer out of range": (
        "refine tiny --layer 9 -s pairs.jsonl -o o",
        "Layer 9 is out of range: the model has 4 layers, counted from 1",
    ),
    "layer 0": (
        "refine tiny --layer 0 -s pairs.jsonl -o o",
        "Options: `layer`: Input should be the number of a layer, counted from 1, or `auto`.",
    ),
    "no layer": (
        "refine tiny --layer deep -s pairs.jsonl -o o",
        "Options: `layer`: Input should be the number of a layer, counted from 1, or `auto`.",
    ),
    "no value": (
        "align tiny -s pairs.jsonl -o o -O epochs",
        "The option 'epochs' has no value; write KEY=VALUE.",
    ),
    "unknown option": (
        "align tiny -s pairs.jsonl -o o -O epoch=1",
        "Options: `epoch` is not a known option; did you mean `epochs`?",
    ),
    "value and group": (
        "refine tiny --layer 2 -s pairs.jsonl -o o -O loss=circle -O loss.name=x",
        "The option 'loss.name=x' goes into 'loss', which has a value of its own.",
    ),
    "no YAML": (
        "evaluate tiny -s pairs.jsonl -o o -O openings=[Sorry",
        "The value of the option 'openings=.Sorry' is not YAML; quote it.",
    ),
    "one label": ("refine tiny --layer 2 -s benign.jsonl -o o", "contrast needs toxic prompts"),
    "no replies": (
        "align tiny -s bare.jsonl -o o",
        "The prompt '0-toxic' of examples has no response to train on",
    ),
    "directory of others": ("align tiny -s pairs.jsonl -o full", "full holds something else already"),
    "diagnosis without toxic prompts": (
        "diagnose tiny -s benign.jsonl -o o",
        "A diagnosis compares toxic with seemingly toxic prompts, two of each at least, and diagnosis has no toxic ones; it has 4 benign.",
    ),
    "diagnosis of one prompt": (
        "diagnose tiny -s one.jsonl -o o",
        "A diagnosis compares .* no toxic ones; it has 1 seemingly_toxic.",
    ),
    "diagnosis with a prompt beyond the context": (
        "diagnose tiny -s pairs.jsonl -s long.jsonl -o o",
        "The prompt 'long-00001' of diagnosis has .* tokens and tiny can read 256; shorten it or leave it out.",
    ),
    "diagnosis option": (
        "diagnose tiny -s pairs.jsonl -o o -O kernel.kk=1",
        "Options: `kernel.kk` is not a known option",
    ),
    "diagnosis of replies": (
        "diagnose tiny -s pairs.jsonl -o o -O kernel.rows=likelihood",
        "Options: `kernel`: .*`rows: likelihood` is about replies",
    ),
    "diagnosis into a directory of others": (
        "diagnose tiny -s pairs.jsonl -o full",
        "full holds something else already",
    ),
    "nothing to compare": ("compare full", "full holds neither an evaluation nor a run"),
    "nothing to report": ("report full", "full has no results.json to report on"),
    "a folder as a file": ("report full --out full", "--out full is a folder; name a file."),
    "no name to write to": ("evaluate tiny -s pairs.jsonl -o /", "--out / has no name."),
    "set by hand": ("prompts show nowhere", "There is no prompt set 'nowhere'"),
}


@pytest.mark.parametrize(("command", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_costs_one_sentence(discern, files, command, message):
    code, output, error = discern(*command.split())
    assert code == 2
    *begun, sentence = error.splitlines()
    assert re.match(f"discern: .*{message}", sentence)
    assert all(line.endswith(" ...") for line in begun)
    assert "Traceback" not in output + error
    assert not Path("o").exists()


def test_a_recipe_that_is_no_text_is_one_sentence(discern, files):
    Path("bytes.yaml").write_bytes(b"name: caf\xe9\n")
    code, output, error = discern("recipes", "bytes.yaml")
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "bytes.yaml" in error
