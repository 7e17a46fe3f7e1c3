"""`discern export`: what is read back from each form is what the run's own files say."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard
from inspect_ai.log import list_eval_logs, read_eval_log

from discernment.evaluation.results import Results
from discernment.evaluation.sample import read_samples
from discernment.files import read_json, read_json_lines, write_json_lines
from discernment.runs.recipe import read_recipe
from discernment.runs.run import run_recipe
from discernment.runs.stages import share_stages
from tiny import make_benign, make_prompts, save_model

DRAWS = 2
RECIPE = {
    "name": "try",
    "model": "tiny",
    "seed": 7,
    "data": {"general": "benign.jsonl", "safety": {"set": "pairs.jsonl"}},
    "align": {"epochs": 1, "batch_size": 4},
    "methods": ["base", "stl"],
    "evaluate": {
        "max_new_tokens": 4, "unscored_limit": 1, "openings": ["Sorry"],
        "benchmarks": ["pairs.jsonl", "talks.jsonl"], "attacks": ["base64"],
        "sampling": {"n": DRAWS, "temperature": 1.0},
    },
}  # fmt: skip
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello. What is it?"},
    {"role": "user", "content": "Write a letter."},
]


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer):
    """A run that is done once for all tests."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_model(Path("tiny"), tokenizer)
        make_prompts(6).to_jsonl(Path("pairs.jsonl"))
        make_benign(4).to_jsonl(Path("benign.jsonl"))
        write_json_lines(Path("talks.jsonl"), [{"prompt": TALK, "label": "benign", "category": "letters"}])
        Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        run_recipe(read_recipe("recipe.yaml"), Path("run"))
    return folder / "run"


@pytest.fixture
def run(built):
    """A copy of it in the working directory."""
    return Path(shutil.copytree(built, "run"))


def rows_of(run):
    """Every reply of a run by method, attack, benchmark, prompt and draw, read from the run's files alone."""
    manifest = read_json(run / "manifest.json")
    found = {}
    for method, entry in manifest["methods"].items():
        for stage in entry["stages"]:
            if not stage.startswith(("evaluate-", "attack-")):
                continue
            for _, row in read_json_lines(run / "stages" / stage / "samples.jsonl"):
                benchmark, plus, attack = row["benchmark"].partition("+")
                assert bool(plus) == stage.startswith("attack-")
                for draw, reply in enumerate([row, *row["further"]]):
                    key = method, attack or None, benchmark, row["prompt_id"], draw
                    assert key not in found
                    found[key] = {**row, **reply}
    return found


def test_inspect_reads_what_the_run_holds(run, discern):
    code, said, error = discern("export", "run", "--to", "inspect")
    assert code == 0, error
    folder = run / "export/inspect"
    assert f"inspect view --log-dir {folder}" in " ".join(error.split())
    expected, results = rows_of(run), Results.model_validate(read_json(run / "results.json"))
    logs = [read_eval_log(info) for info in list_eval_logs(str(folder))]
    assert {log.eval.task for log in logs} == {
        "try: base", "try: stl", "try: base under base64", "try: stl under base64"
    }  # fmt: skip
    assert len({log.eval.task_id for log in logs}) == 4
    seen = set()
    for log in logs:
        said = log.eval.metadata
        assert log.status == "success"
        assert (log.eval.model, said["recipe"], said["seed"], said["discernment"]) == (
            "tiny", "try", 7, "0.1.0"
        )  # fmt: skip
        method, attack = said["method"], said.get("attack")
        assert log.eval.config.epochs == (1 if attack else DRAWS)
        for sample in log.samples:
            benchmark, _, prompt_id = sample.id.partition("/")
            key = method, attack, benchmark, prompt_id, sample.epoch - 1
            seen.add(key)
            row = expected[key]
            assert sample.output.completion == row["completion"] == sample.messages[-1].text
            assert sample.output.stop_reason == ("stop" if row["finished"] else "max_tokens")
            assert sample.target == ("refuse" if row["label"] == "toxic" else "answer")
            held = sample.metadata
            assert (held["benchmark"], held["label"], held["verdict"]) == (
                benchmark, row["label"], row["verdict"]
            )  # fmt: skip
            assert held.get("category") == row["category"]
            assert held.get("rejection_probability") == row["rejection_probability"]
            if benchmark == "talks.jsonl":
                assert [{"role": m.role, "content": m.text} for m in sample.input] == TALK
            else:
                assert sample.input == row["prompt"]
            if row["verdict"] == "unscored":
                assert not sample.scores
            else:
                right = {"toxic": "refusal"}.get(row["label"], "compliance") == row["verdict"]
                assert sample.scores["verdict"].value == row["verdict"]
                assert sample.scores["right"].value == ("C" if right else "I")
        own = [row for key, row in expected.items() if key[:2] == (method, attack)]
        of = {score.name: score for score in log.results.scores}
        counts = {name: metric.value for name, metric in of["verdict"].metrics.items()}
        assert Counter(counts) == Counter(row["verdict"] for row in own)
        assert log.results.total_samples == len(own) == len(log.samples)
        assert of["right"].unscored_samples == counts["unscored"]
        if attack is None:
            rates = {
                (m.metadata["benchmark"], m.metadata["label"]): (
                    m.value, m.metadata["scored"], m.metadata["unscored"], m.metadata["partial"], m.metadata["low"]
                )
                for m in of["right"].metrics.values()
            }  # fmt: skip
            assert rates == {
                (s.benchmark, s.label): (s.value, s.scored, s.unscored, s.partial, s.low)
                for s in results.scores
                if s.method == method and s.value is not None
            }
            assert len(rates) == 3
            aurocs = sorted(m.value for m in of["rejection_probability"].metrics.values())
            assert aurocs == sorted(r.value for r in results.rankings if r.method == method)
            assert aurocs
        else:
            drop = next(d for d in results.attack_drops if (d.method, d.attack) == (method, attack))
            (rate,) = of["right"].metrics.values()
            assert (rate.value, rate.metadata["scored"]) == (drop.attacked, drop.n)
    assert seen == expected.keys()


def test_the_tables_hold_a_row_a_reply(run, discern):
    expected = rows_of(run)
    for form in ("csv", "parquet"):
        code, said, error = discern("export", "run", "--to", form)
        assert code == 0, error
        assert f"run/export/{form}/samples.{form}" in said
    table = (
        pd.read_parquet(run / "export/parquet/samples.parquet")
        .astype(object)
        .where(lambda t: t.notna(), None)
    )
    with (run / "export/csv/samples.csv").open(encoding="utf-8", newline="") as handle:
        of_csv = list(csv.DictReader(handle))
    assert len(table) == len(of_csv) == len(expected)
    for row, cells in zip(table.to_dict("records"), of_csv, strict=True):
        own = expected[row["method"], row["attack"], row["benchmark"], row["prompt_id"], row["draw"]]
        for column in ("label", "category", "prompt", "completion", "finished", "verdict", "partner"):
            assert row[column] == own[column]
        assert row["rejection_probability"] == own["rejection_probability"]
        assert row["system"] == own.get("system")
        assert (json.loads(row["earlier"]) if row["earlier"] else None) == own.get("earlier")
        assert cells.keys() == row.keys()
        for column in ("method", "benchmark", "prompt_id", "label", "verdict"):
            assert cells[column] == row[column]
        if row["rejection_probability"] is not None:
            assert float(cells["rejection_probability"]) == row["rejection_probability"]
    assert {row["system"] for row in table.to_dict("records")} == {None, "Be brief."}


def test_a_dataset_for_the_hub(run, discern):
    code, said, error = discern("export", "run", "--to", "hub", "--out", "me/replies", "--dry-run")
    assert code == 0, error
    assert "Without --dry-run it is sent to me/replies." in " ".join(said.split())
    folder = run / "export/hub"
    loaded = load_dataset(str(folder), split="train")
    assert len(loaded) == len(rows_of(run))
    assert Counter(loaded["verdict"]) == Counter(row["verdict"] for row in rows_of(run).values())
    card = DatasetCard.load(folder / "README.md")
    assert "over-refusal" in card.data.tags
    assert "| pairs.jsonl | not known to discernment |" in card.text
    # The same command replaces what it left; tests are offline.
    code, _, error = discern("export", "run", "--to", "hub", "--out", "me/replies")
    assert (code, error.count("\n")) == (2, 1)
    assert "The hub did not take me/replies" in error
    assert f"{folder} is whole." in error
    (folder / "mine").mkdir()
    code, _, error = discern("export", "run", "--to", "hub", "--out", "me/replies", "--dry-run")
    assert (code, f"{folder} holds something else" in error) == (2, True)


def test_some_methods_alone_and_without_toxic_texts(run, discern):
    code, _, error = discern(
        "export", "run", "--to", "parquet", "--method", "stl", "--out", "new/one", "--redact"
    )
    assert code == 0, error
    table = pd.read_parquet("new/one/samples.parquet")
    assert set(table["method"]) == {"stl"}
    expected = {key: row for key, row in rows_of(run).items() if key[0] == "stl"}
    assert len(table) == len(expected)
    toxic = table["label"] == "toxic"
    assert toxic.sum() == sum(row["label"] == "toxic" for row in expected.values()) > 0
    assert set(table[toxic]["prompt"]) == set(table[toxic]["completion"]) == {"[redacted]"}
    assert set(table[~toxic]["prompt"]) == {
        row["prompt"] for row in expected.values() if row["label"] != "toxic"
    }
    assert Counter(table["verdict"]) == Counter(row["verdict"] for row in expected.values())
    code, _, error = discern("export", "run/stl", "--to", "inspect", "--out", "logs", "--redact")
    assert code == 0, error
    assert {path.name for path in Path("logs").iterdir()} == {"stl.eval", "stl under base64.eval"}
    texts = {row["prompt"] for row in expected.values() if row["label"] == "toxic"}
    log = read_eval_log("logs/stl.eval")
    assert not texts & {sample.input for sample in log.samples if isinstance(sample.input, str)}
    assert {s.output.completion for s in log.samples if s.target == "refuse"} == {"[redacted]"}


def test_one_evaluation_alone(run, discern):
    stage = next(s for s in read_json(run / "manifest.json")["methods"]["stl"]["stages"] if "evaluate" in s)
    (run / "stages" / stage).rename("mine")
    code, said, error = discern("export", "mine", "--to", "inspect")
    assert code == 0, error
    assert "mine-export/inspect/mine.eval" in said
    samples = read_samples(Path("mine/samples.jsonl"))
    log = read_eval_log("mine-export/inspect/mine.eval")
    assert len(log.samples) == DRAWS * len(samples)
    assert Counter(s.metadata["verdict"] for s in log.samples) == Counter(
        v for s in samples for v in s.verdicts
    )


def test_wording_frames_of_toxic_prompts_are_hidden_and_still_shared(run, discern):
    for path in run.glob("stages/evaluate-*/samples.jsonl"):
        rows = [
            row | {"frame": f"How to {n // 2 % 2} {{}}?"} for n, (_, row) in enumerate(read_json_lines(path))
        ]
        write_json_lines(path, rows)
    assert discern("export", "run", "--to", "csv", "--method", "stl", "--out", "o", "--redact")[0] == 0
    table = pd.read_csv("o/samples.csv")
    told = {label: set(rows["frame"]) for label, rows in table.dropna(subset="frame").groupby("label")}
    assert told["seemingly_toxic"] == {"How to 0 {}?", "How to 1 {}?"}
    assert len(told["toxic"]) == 2
    assert not any("How" in frame for frame in told["toxic"])


def test_what_cannot_be_exported_is_one_sentence(run, discern):
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    Path("seeds/seed-3").mkdir(parents=True)
    share_stages(Path("seeds/seed-3"), Path("seeds/stages"))
    for arguments, said in (
        ("run --to csv --out full", "full holds something already; remove it or name another folder"),
        ("run --to csv --method dcr", "There is no method 'dcr' in run; there are base, stl."),
        ("run/dcr --to csv", "The run run has no evaluation of 'dcr'; it has base, stl."),
        ("full --to csv", "full holds neither an evaluation nor a run"),
        ("seeds --to csv", "seeds holds several runs; name one of them, such as seeds/seed-3."),
        ("run --to hub", "`--to hub` needs the repository"),
        ("run --to csv --dry-run", "--dry-run is for `--to hub`; leave it out."),
    ):
        code, _, error = discern("export", *arguments.split())
        assert (code, error.count("\n")) == (2, 1), error
        assert said in error
    assert [path.name for path in Path("full").iterdir()] == ["thesis.tex"]
    assert not (run / "export").exists()
    Path("alone").mkdir()
    shutil.copy(next(run.glob("stages/evaluate-*/samples.jsonl")), "alone/samples.jsonl")
    Path("alone/results.json").write_text("[]")
    assert discern("export", "alone", "--to", "csv")[0] == 0
    (run / "results.json").unlink()
    code, _, error = discern("export", "run", "--to", "csv")
    assert (code, "has no results.json" in error) == (2, True)


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['inspect_ai'] = None\n"
        "sys.argv = ['discern', 'export', 'run', '--to', 'inspect']\n"
        "from discernment.cli.main import main\n"
        "main()"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "pip install 'discernment[inspect]'" in found.stderr
    assert found.stderr.count("\n") == 1
