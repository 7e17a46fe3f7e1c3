"""A working directory with a model and prompts, and two ways to give a command in it."""

import io
import json
import os

import pytest
from typer.testing import CliRunner

from discernment.cli.main import app, main
from tiny import make_benign, make_prompts


@pytest.fixture(autouse=True)
def _working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("discernment.cli.console.console.width", 300)
    monkeypatch.setattr("discernment.cli.console.notices.width", 300)
    for name in (
        "TOKENIZERS_PARALLELISM",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_DATASETS_DISABLE_PROGRESS_BARS",
    ):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # which the command sets; undone after the test
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.delenv("DISCERNMENT_DATA", raising=False)


@pytest.fixture
def discern(monkeypatch, capsys):
    """Give a command as a user does: its exit code, what it prints, and its errors."""

    def give(*arguments, stdin=None):
        monkeypatch.setattr("sys.argv", ["discern", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", stdin or io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return give


@pytest.fixture
def screen(discern):
    """Give a command as a user at a screen does: its exit code, results and notices together, and its errors alone."""

    def give(*arguments, **options):
        code, output, errors = discern(*arguments, **options)
        return code, output + errors, errors

    return give


@pytest.fixture
def invoke():
    """Give a command and let its mistakes through: its exit code, and what it prints."""

    def give(*arguments):
        result = CliRunner().invoke(app, arguments)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return give


@pytest.fixture
def files(tmp_path, model_folder):
    """A model and prompt files, with short names in the working directory."""
    model_folder().rename(tmp_path / "tiny")
    make_prompts(6).to_jsonl(tmp_path / "pairs.jsonl")
    make_prompts(2, responses=False).to_jsonl(tmp_path / "bare.jsonl")
    make_benign(4).to_jsonl(tmp_path / "benign.jsonl")
    (tmp_path / "one.jsonl").write_text('{"prompt": "Hi", "label": "seemingly_toxic"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "how " * 300, "label": "benign"}) + "\n")
    (tmp_path / "row.jsonl").write_text('{"prompt": "Hi", "label": "benign"}\n{"label": "benign"}\n')
    (tmp_path / "label.jsonl").write_text('{"prompt": "Hi", "label": "harmful"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
