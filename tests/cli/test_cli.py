"""The command line: what each verb prints, and that a mistake costs one sentence."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from discernment.cli.main import main
from discernment.diagnosis.diagnose import Diagnosis
from discernment.evaluation.results import Results
from discernment.files import read_json
from tiny import make_benign, make_prompts

VERBS = ("run", "refine", "align", "evaluate", "diagnose", "compare", "report", "chat", "prompts")
QUICK = ["-O", "max_new_tokens=3", "-O", "openings=[Sorry]", "-O", "unscored_limit=1"]


class Interrupted(io.StringIO):
    """An input at which the user presses Ctrl-C."""

    def readline(self, *args):
        raise KeyboardInterrupt


@pytest.fixture
def discern(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("discernment.cli.console.console.width", 200)
    for name in ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # which the command sets; undone after the test
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.delenv("DISCERNMENT_DATA", raising=False)

    def invoke(*arguments, stdin=None):
        monkeypatch.setattr("sys.argv", ["discern", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", stdin or io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return invoke


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


def write_recipe(path, **changes):
    recipe = {
        "name": "try",
        "model": "tiny",
        "data": {"general": "benign.jsonl", "safety": "pairs.jsonl", "contrast": "pairs.jsonl"},
        "refine": {"layer": 2, "steps": 2, "batch_size": 4},
        "methods": ["base"],
        "evaluate": {
            "max_new_tokens": 3,
            "unscored_limit": 1,  # a tiny model says nothing that can be read
            "openings": ["Sorry"],
            "benchmarks": ["pairs.jsonl", "benign.jsonl"],
        },
    }
    path.write_text(yaml.safe_dump({**recipe, **changes}))


def test_help_names_every_verb_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['discern', '--help']\n"
        "from discernment.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'matplotlib', 'trl', 'peft'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in VERBS:
        assert re.search(rf"^\W*{verb}  +[A-Z]", found.stdout, re.MULTILINE), verb
    assert found.stdout.endswith("heavy: []\n")


def test_every_verb_has_help(discern):
    for verb in VERBS:
        code, output, _ = discern(verb, "--help")
        assert code == 0
        assert verb in output
    assert discern("prompts", "list")[0] == 0
    assert discern("nothing")[0] == 2
    assert discern("refine", "tiny")[0] == 2


MISTAKES = {
    "missing recipe": (["run", "none.yaml"], "There is no recipe none.yaml."),
    "missing prompts": (["evaluate", "tiny", "-s", "none.jsonl", "-o", "o"], "There is no file none.jsonl."),
    "empty after filtering": (
        ["evaluate", "tiny", "-s", "pairs.jsonl:test", "-o", "o"],
        "pairs has no prompt with split test; it has 6 toxic and 6 seemingly_toxic.",
    ),
    "row without a prompt": (
        ["align", "tiny", "-s", "row.jsonl", "-o", "o"],
        "row, line 2, has no prompt in column",
    ),
    "unknown label": (
        ["refine", "tiny", "--layer", "2", "-s", "label.jsonl", "-o", "o"],
        "label, line 1, has the label 'harmful'; it must be one of toxic, seemingly_toxic, benign.",
    ),
    "unknown set": (
        ["evaluate", "tiny", "-s", "xtest", "-o", "o"],
        "There is no prompt set 'xtest'; .*'xstest'",
    ),
    "unknown model": (
        ["evaluate", "no/model", "-s", "pairs.jsonl", "-o", "o"],
        "The model 'no/model' cannot be loaded",
    ),
    "missing folder": (["chat", "./gone"], "There is no model folder ./gone."),
    "no model folder": (["chat", "full"], "The folder full holds no model: it has no config.json."),
    "layer out of range": (
        ["refine", "tiny", "--layer", "9", "-s", "pairs.jsonl", "-o", "o"],
        "Layer 9 is out of range: the model has 4 layers, counted from 1",
    ),
    "layer 0": (
        ["refine", "tiny", "--layer", "0", "-s", "pairs.jsonl", "-o", "o"],
        "Options: `layer`: Input should be the number of a layer, counted from 1, or `auto`.",
    ),
    "no layer": (
        ["refine", "tiny", "--layer", "deep", "-s", "pairs.jsonl", "-o", "o"],
        "Options: `layer`: Input should be the number of a layer, counted from 1, or `auto`.",
    ),
    "no value": (
        ["align", "tiny", "-s", "pairs.jsonl", "-o", "o", "-O", "epochs"],
        "The option 'epochs' has no value; write KEY=VALUE.",
    ),
    "unknown option": (
        ["align", "tiny", "-s", "pairs.jsonl", "-o", "o", "-O", "epoch=1"],
        "Options: `epoch` is not a known option; did you mean `epochs`?",
    ),
    "value and group": (
        [
            "refine",
            "tiny",
            "--layer",
            "2",
            "-s",
            "pairs.jsonl",
            "-o",
            "o",
            "-O",
            "loss=circle",
            "-O",
            "loss.name=x",
        ],
        "The option 'loss.name=x' goes into 'loss', which has a value of its own.",
    ),
    "no YAML": (
        ["evaluate", "tiny", "-s", "pairs.jsonl", "-o", "o", "-O", "openings=[Sorry"],
        "The value of the option 'openings=.Sorry' is not YAML; quote it.",
    ),
    "one label": (
        ["refine", "tiny", "--layer", "2", "-s", "benign.jsonl", "-o", "o"],
        "contrast needs toxic prompts",
    ),
    "no replies": (
        ["align", "tiny", "-s", "bare.jsonl", "-o", "o"],
        "The prompt '0-toxic' of examples has no response to train on",
    ),
    "directory of others": (
        ["align", "tiny", "-s", "pairs.jsonl", "-o", "full"],
        "full holds something else already",
    ),
    "diagnosis without toxic prompts": (
        ["diagnose", "tiny", "-s", "benign.jsonl", "-o", "o"],
        "A diagnosis compares toxic with seemingly toxic prompts, two of each at least, and diagnosis has no toxic ones; it has 4 benign.",
    ),
    "diagnosis of one prompt": (
        ["diagnose", "tiny", "-s", "one.jsonl", "-o", "o"],
        "A diagnosis compares .* no toxic ones; it has 1 seemingly_toxic.",
    ),
    "diagnosis with a prompt beyond the context": (
        ["diagnose", "tiny", "-s", "pairs.jsonl", "-s", "long.jsonl", "-o", "o"],
        "The prompt 'long-00001' of diagnosis has .* tokens and tiny can read 256; shorten it or leave it out.",
    ),
    "diagnosis option": (
        ["diagnose", "tiny", "-s", "pairs.jsonl", "-o", "o", "-O", "kernel.kk=1"],
        "Options: `kernel.kk` is not a known option",
    ),
    "diagnosis of replies": (
        ["diagnose", "tiny", "-s", "pairs.jsonl", "-o", "o", "-O", "kernel.rows=likelihood"],
        "Options: `kernel`: .*`rows: likelihood` is about replies",
    ),
    "diagnosis into a directory of others": (
        ["diagnose", "tiny", "-s", "pairs.jsonl", "-o", "full"],
        "full holds something else already",
    ),
    "nothing to compare": (["compare", "full"], "full holds neither an evaluation nor a run"),
    "nothing to report": (["report", "full"], "full has no results.json to report on"),
    "set by hand": (["prompts", "show", "nowhere"], "There is no prompt set 'nowhere'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_costs_one_sentence(discern, files, arguments, message):
    code, output, error = discern(*arguments)
    assert code == 2
    assert re.match(f"discern: .*{message}", error)
    assert error.count("\n") == 1
    assert "Traceback" not in output + error
    assert not Path("o").exists()


RECIPE_MISTAKES = {
    "unknown key": ({"sed": 1}, "bad.yaml: `sed` is not a known option; did you mean `seed`?"),
    "empty after filtering": (
        {"data": {"general": {"set": "benign.jsonl", "label": "toxic"}}},
        "benign has no prompt with label toxic; it has 4 benign.",
    ),
    "row without a prompt": (
        {"data": {"general": "row.jsonl"}},
        "row, line 2, has no prompt in column 'prompt'",
    ),
    "unknown label": ({"data": {"general": "label.jsonl"}}, "label, line 1, has the label 'harmful'"),
    "unknown model": ({"model": "no/model"}, "The model 'no/model' cannot be loaded"),
    "layer out of range": (
        {"methods": ["dcr"], "refine": {"layer": 5, "steps": 1}},
        "Layer 5 is out of range: the model has 4 layers",
    ),
    "missing material": (
        {"data": {}, "methods": ["stl"]},
        "The method 'stl' needs prompts under `data.general`",
    ),
}


@pytest.mark.parametrize(("changes", "message"), RECIPE_MISTAKES.values(), ids=RECIPE_MISTAKES)
def test_a_mistake_in_a_recipe_costs_one_sentence(discern, files, changes, message):
    write_recipe(Path("bad.yaml"), **changes)
    code, output, error = discern("run", "bad.yaml", "-o", "o")
    assert code == 2
    assert re.match(f"discern: {message}", error)
    assert error.count("\n") == 1
    assert "Traceback" not in output + error


def test_a_run_needs_a_place(discern, files):
    write_recipe(Path("good.yaml"))
    code, _, error = discern("run", "good.yaml", "-o", "full/thesis.tex")
    assert (code, error.count("\n")) == (2, 1)
    assert re.match(r"discern: The run directory full/thesis\.tex cannot be made", error)


def test_the_verbs_one_after_another(discern, files):
    refine = ["refine", "tiny", "--layer", "2", "-s", "pairs.jsonl", "-o", "refined", "-O", "steps=2"]
    refine += ["-O", "batch_size=4", "-O", "learning_rate=1e-3", "-O", "loss.name=supcon"]
    code, output, _ = discern(*refine)
    assert (code, output.splitlines()) == (0, ["refine ...", "Model: refined/model"])
    assert read_json(Path("refined/stage.json"))["inputs"]["options"]["loss"]["name"] == "supcon"
    code, output, _ = discern(*refine)
    assert output.splitlines() == ["refine (done before)", "Nothing to do; the model is there: refined/model"]

    align = ["align", "refined/model", "-s", "benign.jsonl", "-s", "pairs.jsonl", "-o", "aligned"]
    code, output, _ = discern(*align, "-O", "learning_rate=3e-3", "-O", "batch_size=4")
    assert (code, output.splitlines()[-1]) == (0, "Model: aligned/model")

    for model, out in (("tiny", "before"), ("aligned/model", "after")):
        code, output, _ = discern(
            "evaluate", model, "-s", "pairs.jsonl", "-s", "benign.jsonl", "-o", out, *QUICK
        )
        assert code == 0
        assert "replies: 16 of 16" in output
        assert f"By the judge's verdicts, {model} " in output
        assert f"Samples: {out}/samples.jsonl; compare with others: discern compare {out} OTHER" in output
        results = Results.model_validate(read_json(Path(out) / "results.json"))
        assert (results.methods, results.benchmarks) == ([model], ["pairs.jsonl", "benign.jsonl"])

    code, output, _ = discern("compare", "before", "dcr=after", "--out", "both.json")
    assert code == 0
    assert "compared with before, dcr" in output
    assert "Results: both.json" in output
    assert Results.model_validate(read_json(Path("both.json"))).methods == ["before", "dcr"]
    assert discern("compare", "before", "before")[2].startswith(
        "discern: Two evaluations are called 'before'"
    )
    assert discern("compare", "before", "--reference", "x")[2].startswith(
        "discern: There is no evaluation called 'x'"
    )
    discern("evaluate", "tiny", "-s", "bare.jsonl", "-o", "other", *QUICK)
    assert "no prompt in common" in discern("compare", "before", "other")[2]
    discern("evaluate", "tiny", "-s", "pairs.jsonl", "-o", "longer", *QUICK, "-O", "max_new_tokens=5")
    assert "were made in different ways" in discern("compare", "before", "longer")[2]
    discern("evaluate", "tiny", "-s", "pairs.jsonl", "-o", "plain", *QUICK, "-M", "template=plain")
    plain, chat = (Path(out, "samples.jsonl").read_text() for out in ("plain", "before"))
    assert plain
    assert plain != chat
    assert "known" in discern("evaluate", "tiny", "-o", "none", "-M", "zzz=1")[2]


def test_diagnose(discern, files):
    command = [
        "diagnose",
        "tiny",
        "-s",
        "pairs.jsonl",
        "-s",
        "benign.jsonl",
        "-o",
        "why",
        "-O",
        "per_group=2",
    ]
    command += ["-O", "kernel.k=2", "-M", "dtype=bfloat16"]
    code, output, _ = discern(*command)
    assert code == 0
    assert "layers of the kernel: 4 of 4" in output
    assert re.search(r"moved +toxic +seemingly toxic +benign", output)
    found = Diagnosis.model_validate(read_json(Path("why/diagnosis.json")))
    shown = " ".join(output.split())
    assert " ".join(found.finding.split()) in shown
    assert f"Next: discern refine tiny --layer {found.recommendation.layer} --out refined" in shown
    assert "Report: why/report.html; numbers: why/diagnosis.json" in shown
    assert found.options.kernel.by_layer
    assert sorted(p.name for p in Path("why").iterdir() if p.name != "inputs.json") == [
        "diagnosis.json",
        "report.html",
        "stage.json",
    ]
    assert "neighbor" in Path("why/report.html").read_text()

    before = Path("why/diagnosis.json").stat().st_mtime_ns
    code, output, _ = discern(*command, "--redact")
    assert code == 0
    assert "Nothing to do; the diagnosis is there." in output
    assert Path("why/diagnosis.json").stat().st_mtime_ns == before
    assert "neighbor" not in Path("why/report.html").read_text()
    assert "holds something else already" in discern(*command, "-O", "seed=1")[2]

    help_text = re.sub(r"[│\s]+", " ", discern("diagnose", "--help")[1])
    assert "Not one that you report on" in help_text


def test_diagnose_says_what_is_unscored(discern, files):
    model = AutoModelForCausalLM.from_pretrained("tiny")
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    (token,) = tokenizer("%", add_special_tokens=False)["input_ids"]
    weight = model.get_input_embeddings().weight.data
    model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = torch.nn.Parameter(weight.clone())
    weight[token] = float("nan")
    model.save_pretrained("spoilt")
    tokenizer.save_pretrained("spoilt")
    Path("bad.jsonl").write_text('{"prompt": "Only 5%?", "label": "toxic"}\n')
    command = ["diagnose", "spoilt", "-s", "pairs.jsonl", "-s", "bad.jsonl", "-o", "why", "-O", "per_group=2"]
    code, output, _ = discern(*command)
    assert code == 0
    assert "Caution: unscored prompts, which are in no number: 1." in output
    assert "bad-00001" in Path("why/report.html").read_text()


def test_refine_finds_its_layer(discern, files, caplog):
    refine = ["refine", "tiny", "--layer", "auto", "-s", "pairs.jsonl", "-o", "refined", "-O", "steps=1"]
    with caplog.at_level("INFO", "discernment"):
        code, output, _ = discern(*refine, "-O", "batch_size=4")
    assert (code, output.splitlines()) == (0, ["refine ...", "Model: refined/model"])
    record = read_json(Path("refined/stage.json"))
    assert record["inputs"]["options"]["layer"] == "auto"
    assert record["notes"]["layer"] in (1, 2, 3)
    assert record["notes"]["layer_reason"] in caplog.messages


def test_a_run_with_several_seeds(discern, files):
    again = {"method": "base", "name": "again"}
    write_recipe(Path("seeds.yaml"), seeds=[0, 3], methods=["base", again])
    code, output, _ = discern("run", "seeds.yaml")
    assert code == 0
    assert output.count("evaluate ...") == 1  # base is what it is under every name and seed
    for seed in (0, 3):
        run = f"runs/try/seed-{seed}"
        assert f"Seed {seed}. Report: {run}/report.html; tables: {run}/tables\nCaution: 12 prompts" in output
        assert Path(run, "tables/scores.csv").is_file()
    assert "again and base cannot be compared at equal safety" in output
    assert "the benign prompts of benign.jsonl (0.000, 95 % interval" in " ".join(output.split())
    assert output.endswith("Page: runs/try/seeds.html\n")
    assert "not clearly different" in Path("runs/try/seeds.html").read_text()
    assert discern("run", "seeds.yaml")[1].count("(done before)") == 4


def test_a_run_its_report_and_its_models(discern, files):
    write_recipe(Path("good.yaml"), methods=["base", "stl"])
    code, output, _ = discern("run", "good.yaml")
    assert code == 0
    assert re.search("^stl align", output, re.MULTILINE)
    assert "Caution: 12 prompts of pairs.jsonl are also in the training data." in output
    assert "Report: runs/try/report.html; tables: runs/try/tables" in output
    assert [p.name for p in sorted(Path("runs/try/tables").iterdir())] == ["comparisons.csv", "scores.csv"]
    finding = Results.model_validate(read_json(Path("runs/try/results.json"))).finding
    assert finding.split(".")[0] in " ".join(output.split())
    code, output, _ = discern("run", "good.yaml")
    assert code == 0
    assert "Nothing to do: every stage was done before." in output
    assert output.count("(done before)") == 3

    assert discern("report", "runs/try", "-o", "own.html", "--redact")[:2] == (0, "Report: own.html\n")
    assert Path("own.html").stat().st_size > 1000
    assert "compared with stl, base" in discern("compare", "runs/try")[1]
    code, output, _ = discern("compare", "one=runs/try", "two=runs/try", "--out", "four.json")
    assert read_json(Path("four.json"))["methods"] == ["one/base", "one/stl", "two/base", "two/stl"]

    talk = io.StringIO("How do I kill a process?\n[bold]Hi[/bold]\n\n")
    code, output, _ = discern("chat", "runs/try/stl", "--max-new-tokens", "3", stdin=talk)
    assert code == 0
    masses = re.findall(r"rejection probability (\d\.\d{3}), judged (\w+)", output)
    assert len(masses) == 2
    assert discern("chat", "tiny", stdin=io.StringIO(""))[0] == 0
    code, output, _ = discern(
        "diagnose", "runs/try/stl", "-s", "pairs.jsonl", "-o", "why", "-O", "per_group=1"
    )
    assert (code, "discern refine runs/try/stages/align-" in output.replace("\n", "")) == (0, True)
    code, _, error = discern("chat", "runs/try/dcr")
    assert (code, error) == (2, "discern: The run runs/try has no method 'dcr'; it has base, stl.\n")


def test_ctrl_c(discern, files):
    code, _, error = discern("chat", "tiny", stdin=Interrupted())
    assert (code, error) == (130, "discern: interrupted; the same command goes on from here.\n")


def test_a_run_that_is_interrupted_from_outside_goes_on(discern, files, tmp_path):
    write_recipe(tmp_path / "good.yaml")
    # A shell lets what it runs in the background ignore the signal, and children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from discernment.cli.main import main; main()"
    )
    command = [sys.executable, "-c", code, "run", "good.yaml"]
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
    assert not (tmp_path / "runs/try/results.json").exists()
    code, output, _ = discern("run", "good.yaml")
    assert (code, "Report: runs/try/report.html" in output) == (0, True)
    assert json.loads((tmp_path / "runs/try/manifest.json").read_text())["status"] == "complete"
