"""What the pages of docs/ and README.md tell a reader to type, and that the site has a place for every page."""

import io
import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from mkdocs.config import load_config
from typer.core import TyperCommand, TyperGroup

from discernment.cli.main import app, main
from discernment.cli.options import parse_options
from discernment.diagnosis.diagnosis import DiagnoseOptions
from discernment.evaluation.evaluate import JudgedOptions
from discernment.runs.built_in import find_recipe
from discernment.training.contrastive import RefineOptions
from discernment.training.supervised import AlignOptions
from tiny import make_benign, make_prompts, save_model
from typed import PAGES, ROOT, in_blocks, in_lines

JOURNEY = ["install", "first_run", "your_model", "report", "first_hour"]
OPTIONS = {
    "refine": RefineOptions, "align": AlignOptions, "evaluate": JudgedOptions, "diagnose": DiagnoseOptions,
}  # fmt: skip
# Needs the network, an account, a GPU, or a tool that is not ours.
ELSEWHERE = {
    "accelerate",
    "torchrun",
    "tensorboard",
    "python",
    "python3",
    "pip",
    "docker",
    "pytest",
    "cd",
    "inspect",
    ".",
}
TARGETS = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def parsed(arguments, *, whole=True):
    """What the command line makes of arguments, without doing it; if not `whole`, what is required may be missing."""
    command, words = typer.main.get_command(app), list(arguments)
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    if isinstance(command, TyperGroup):
        known = {name for option in command.params for name in option.opts} | {"--help", "-h"}
        assert words or not whole, "a verb is missing"
        assert set(words) <= known
        return command.name, {}
    assert isinstance(command, TyperCommand)
    try:
        return command.name, command.make_context(command.name, words).params
    except typer.BadParameter as error:
        if whole or not str(error).startswith("Missing parameter"):
            raise
        return command.name, {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_is_one_that_there_is(page):
    for typed in in_blocks(page):
        check(typed, whole=True)
    for typed in in_lines(page):
        if typed.words[1] != "VERB":
            check(typed, whole=False)


def check(typed, *, whole):
    program, *arguments = typed.words
    if program == "make":
        assert set(arguments) <= set(TARGETS), arguments
    elif program == "discern":
        verb, given = parsed(arguments, whole=whole)
        recipe = given.get("recipe")
        if recipe is not None and re.fullmatch(r"[a-z_]+", str(recipe)):
            find_recipe(str(recipe), None if verb == "recipes" else verb)
        if verb in OPTIONS and given.get("option"):
            needed = {"layer": 1} if verb == "refine" else {}
            assert parse_options(OPTIONS[verb], given["option"], needed) is not None
    else:
        assert program in ELSEWHERE, program


def test_there_are_commands_on_the_pages():
    blocks = {page.stem: len([c for c in in_blocks(page) if c.words[0] == "discern"]) for page in PAGES}
    assert sum(blocks.values()) > 50
    assert {page: blocks[page] > 0 for page in JOURNEY} == dict.fromkeys(JOURNEY, True)
    assert sum(len(in_lines(page)) for page in PAGES) > 30


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["run", "quickstart", "--job", "4"], "No such option"),
        (["compare"], "Missing parameter"),
        (["report", "runs/a", "runs/b"], "unexpected extra argument"),
    ],
)
def test_a_command_that_there_is_not_is_found(line, message):
    with pytest.raises(Exception, match=message):
        parsed(line)


def reduced(content, model):
    """A recipe on a tiny model, with few steps and prompts."""
    content["model"] = model
    for value in content["data"].values():
        for source in value if isinstance(value, list) else [value]:
            source["limit"] = 12
    content["refine"] |= {"steps": 2, "batch_size": 8}
    if "evaluate_every" in content["refine"]:
        content["refine"] |= {"layer": 2, "evaluate_every": 2}
    content.setdefault("align", {}).update(batch_size=8, epochs=1)
    content["evaluate"] |= {"max_new_tokens": 4, "openings": ["Sorry", "I can't"], "unscored_limit": 1}
    for source in content["evaluate"]["benchmarks"]:
        source["limit"] = 6
    return content


@pytest.fixture
def desk(tmp_path, monkeypatch, tokenizer):
    """A directory with the files that the pages speak of, whose `quickstart` is a small one on a tiny model."""
    model = save_model(tmp_path / "tiny", tokenizer, max_position_embeddings=1024)
    (tmp_path / "quickstart").write_text(
        yaml.safe_dump(reduced(yaml.safe_load(find_recipe("quickstart").read_text()), str(model)))
    )
    for name in ("contrast", "validation", "test"):
        make_prompts(8).to_jsonl(tmp_path / f"{name}.jsonl")
    make_benign(8).to_jsonl(tmp_path / "general.jsonl")
    make_prompts(8).with_label("toxic").to_jsonl(tmp_path / "safety.jsonl")
    make_prompts(8).with_label("seemingly_toxic").to_jsonl(tmp_path / "answered.jsonl")
    save_model(tmp_path / "MODEL", tokenizer, max_position_embeddings=1024)
    (tmp_path / "my.csv").write_text("question\nHow do I kill a process?\nHow do I shoot a film?\n")
    page = ROOT.joinpath("docs/your_model.md").read_text(encoding="utf-8")
    (own,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    own = reduced(yaml.safe_load(own), str(model))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    return own


@pytest.mark.slow
def test_a_reader_can_type_what_the_first_pages_say(desk, monkeypatch, capsys):
    codes = {}
    for page in JOURNEY:
        if page == "your_model":  # where the reader writes it
            Path("mine.yaml").write_text(yaml.safe_dump(desk))
        for typed in in_blocks(ROOT / f"docs/{page}.md"):
            if typed.words[0] == "discern":
                codes[page, " ".join(typed.words)] = give(typed, monkeypatch, capsys)
    assert len(codes) > 15
    # Of the made-up files, the training prompts are also test prompts, and that is what the verb is there to find.
    (leaks,) = (key for key in codes if key[1].startswith("discern prompts check"))
    assert codes.pop(leaks) == 1
    assert {key: code for key, code in codes.items() if code != 0} == {}
    for left in ("runs/quickstart/report.html", "runs/mine/report.html", "out/comparison/comparison.html"):
        assert Path(left).is_file()
    page = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| `([\w./*-]+)` \|", page, re.MULTILINE)
    assert len(files) == 4
    for name in files:
        assert list(Path("runs/mine").glob(name.replace("KEY", "*"))), name


def give(typed, monkeypatch, capsys):
    """Give the command as a reader does; a number of prompts and steps is named where the default is a real model's."""
    words = typed.words
    if words[1] == "diagnose":
        words = [*words, "--option", "per_group=2", "--option", "kernel.k=2"]
    if words[1] == "evaluate":
        words = [*words, "--option", "max_new_tokens=2", "--option", "unscored_limit=1"]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("sys.stdin", io.StringIO("How do I kill a Python process?\n\n"))
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    if typed.to:
        Path(typed.to).write_text(shown.out)
    assert ended.value.code in (None, 0, 1), shown.err
    return ended.value.code or 0


def test_every_page_has_its_place_on_the_site():
    named = set(pages_of(load_config(str(ROOT / "mkdocs.yml")).nav))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    from_elsewhere = {"contributing.md", "changelog.md", "reference.md"}
    assert len(there) > 25
    assert {name for name in there if not name.startswith("decisions/")} == {
        name for name in named - from_elsewhere if not name.startswith("decisions/")
    }
    assert from_elsewhere | {"decisions/"} <= named


def pages_of(nav):
    for item in nav:
        for value in item.values() if isinstance(item, dict) else [item]:
            yield from pages_of(value) if isinstance(value, list) else [value]


def test_every_extra_is_in_the_table_of_the_page_on_installing():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == sorted(project["optional-dependencies"])


def test_every_package_that_is_asked_for_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {
        plain(n) for n in re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    }
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["dev"], *extras["docs"]]
    assert len(asked) > 30
    assert {plain(re.match(r"[\w.-]+", name)[0]) for name in asked} - pins == set()


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()
