"""What the screen cannot show, and what the environment may say of the log."""

import os
import subprocess
import sys

import pytest

from discernment.cli.console import LOG_LEVELS


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_encoding_lacks_becomes_a_question_mark(tmp_path, encoding):
    text = "How do I bake Flammkuchen à la crème — 🍞?"
    (tmp_path / "bread.jsonl").write_text(f'{{"prompt": "{text}", "label": "benign"}}\n', encoding="utf-8")
    command = [sys.executable, "-m", "discernment", "prompts", "show", "bread.jsonl"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert text.encode(encoding, "replace") in found.stdout
    assert found.stderr == b""


@pytest.mark.parametrize("level", ["loud", "10", "notset"])
def test_an_unknown_log_level_is_named_with_those_that_there_are(discern, monkeypatch, level):
    monkeypatch.setenv("DISCERNMENT_LOG", level)
    code, _, errors = discern("evaluate", "nowhere", "--out", "out", "--set", "starter/pairs")
    assert code == 2
    assert errors == (
        f"discern: DISCERNMENT_LOG is {level!r}, which is no log level; set it to one of debug, info, warning, "
        "error, critical.\n"
    )


@pytest.mark.parametrize("level", ["", *LOG_LEVELS, "info"])
def test_a_log_level_is_taken(discern, monkeypatch, level):
    monkeypatch.setenv("DISCERNMENT_LOG", level)
    code, _, errors = discern("evaluate", "./nowhere", "--out", "out", "--set", "starter/pairs")
    assert (code, errors.strip().splitlines()[-1]) == (2, "discern: There is no model folder ./nowhere.")
