"""`discern sweep`: what it prints, what it leaves, and how it ends."""

import pytest
import yaml

from discernment.files import read_json
from interruption import interrupt


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


def test_a_sweep_prints_a_line_a_trial_and_goes_on(discern, screen, files, tmp_path):
    write(tmp_path / "s.yaml")
    code, output, _ = screen("sweep", "s.yaml", "--trials", 1)
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

    code, output, _ = screen("sweep", "s.yaml")
    assert code == 0
    assert "Trial 1, 2 of 2: " in output
    assert "Trial 0, " not in output
    assert "Say [bold]no[/bold].⟨U+001B⟩[31m" in output
    assert "looks better on the prompts that it was chosen by" in output
    assert len(read_json(tmp_path / "runs/try/sweep.json")["trials"]) == 2
    page = (tmp_path / "runs/try/sweep.html").read_text()
    assert "Say [bold]no[/bold].⟨U+001B⟩[31m" in page
    assert discern("run", "runs/try/best.yaml", "--out", "best")[0] == 0


def test_mistakes_cost_a_sentence(discern, files, tmp_path):
    write(tmp_path / "s.yaml", space={"model.sistem": ["x"]})
    code, _, error = discern("sweep", "s.yaml")
    assert code == 2
    assert error == "discern: The sweep try: `model.sistem` is not a known option; did you mean `system`?\n"
    code, _, error = discern("sweep", "none.yaml")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("discern: There is no sweep none.yaml: neither a file nor")
    assert discern("sweep", "s.yaml", "--trials", 0)[0] == 2


@pytest.mark.slow
def test_ctrl_c_says_that_the_same_command_goes_on(screen, files, tmp_path):
    write(tmp_path / "s.yaml")
    code, printed, error = interrupt(tmp_path, "sweep", "s.yaml")
    assert code == 130
    assert printed[0].startswith("base evaluate ...")
    assert error.endswith("discern: interrupted; the same command goes on from here.\n")
    assert "Traceback" not in error
    assert not (tmp_path / "runs/try/sweep.json").exists()
    code, output, _ = screen("sweep", "s.yaml")
    assert (code, "Trial 1, 2 of 2: " in output) == (0, True)
