"""`discern sweep`: what it prints, what it leaves, and how it ends."""

import io
import os
import signal
import subprocess
import sys

import pytest
import yaml

from discernment.cli.main import main
from discernment.files import read_json
from tiny import make_benign, make_prompts


@pytest.fixture
def discern(monkeypatch, tmp_path, capsys, model_folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("discernment.cli.console.console.width", 300)
    for name in ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # which the command sets; undone after the test
    model_folder().rename(tmp_path / "tiny")
    make_prompts(4).to_jsonl(tmp_path / "pairs.jsonl")
    make_benign(4).to_jsonl(tmp_path / "benign.jsonl")

    def invoke(*arguments):
        monkeypatch.setattr("sys.argv", ["discern", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return invoke


def write(path, **changes):
    recipe = {
        "model": "tiny",
        "methods": ["base"],
        "evaluate": {
            "max_new_tokens": 2,
            "unscored_limit": 1,  # a tiny model says nothing that can be read
            "openings": ["Sorry"],
            "benchmarks": ["pairs.jsonl"],
        },
    }
    content = {
        "name": "try",
        "recipe": recipe,
        "space": {"model.system": ["Say sure.", "Say [bold]no[/bold].\x1b[31m"]},
        "objectives": [{"auroc": "base"}],
        "sampler": "grid",
    }
    path.write_text(yaml.safe_dump({**content, **changes}))


def test_a_sweep_prints_a_line_a_trial_and_goes_on(discern, tmp_path):
    write(tmp_path / "s.yaml")
    code, output, _ = discern("sweep", "s.yaml", "--trials", 1)
    assert code == 0
    lines = [
        line
        for line in output.splitlines()
        if line.startswith("Trial 0, 1 of 1: discernment AUROC of base 0.")
    ]
    assert len(lines) == 1
    assert " s, with model.system: Say " in lines[0]
    assert "Trial 0 is the best: " in output
    assert "Best: runs/try/best.yaml" in output

    code, output, _ = discern("sweep", "s.yaml")
    assert code == 0
    assert "Trial 1, 2 of 2: " in output
    assert "Trial 0, " not in output
    assert "Say [bold]no[/bold].⟨U+001B⟩[31m" in output
    assert "looks better on the prompts that it was chosen by" in output
    assert len(read_json(tmp_path / "runs/try/sweep.json")["trials"]) == 2
    page = (tmp_path / "runs/try/sweep.html").read_text()
    assert "Say [bold]no[/bold].⟨U+001B⟩[31m" in page
    assert discern("run", "runs/try/best.yaml", "--out", "best")[0] == 0


def test_mistakes_cost_a_sentence(discern, tmp_path):
    write(tmp_path / "s.yaml", space={"model.sistem": ["x"]})
    code, _, error = discern("sweep", "s.yaml")
    assert code == 2
    assert error == "discern: The sweep try: `model.sistem` is not a known option; did you mean `system`?\n"
    assert discern("sweep", "none.yaml")[::2] == (2, "discern: There is no sweep none.yaml.\n")
    assert discern("sweep", "s.yaml", "--trials", 0)[0] == 2


def test_ctrl_c_says_that_the_same_command_goes_on(discern, tmp_path):
    write(tmp_path / "s.yaml")
    # A shell lets what it runs in the background ignore the signal, and children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from discernment.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "sweep", "s.yaml"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "base evaluate ...\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    assert error.endswith("discern: interrupted; the same command goes on from here.\n")
    assert "Traceback" not in error
    assert not (tmp_path / "runs/try/sweep.json").exists()
    code, output, _ = discern("sweep", "s.yaml")
    assert (code, "Trial 1, 2 of 2: " in output) == (0, True)
