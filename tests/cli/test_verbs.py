"""Every method of the field recipe with every verb, on a tiny model; and runs that are killed in a method's own stages."""

import io
import re
import signal
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from discernment.diagnosis.diagnosis import Diagnosis
from discernment.evaluation.results import Results
from discernment.evaluation.sample import read_samples
from discernment.files import read_json, read_json_lines, write_json_lines
from discernment.methods.method import known_methods
from discernment.policies.rule import known_rules
from discernment.prompts import Label
from discernment.runs.manifest import policy_of
from discernment.runs.recipe import read_recipe
from interruption import interrupt
from reduced import METHODS, samples_of
from tiny import make_prompts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SAID = Path(__file__).parents[2].joinpath("docs/diagnosis.md").read_text(encoding="utf-8")
RULED = re.search(r"\*\*Policies with a rule\.\*\* (.+?)\. (.+?)\n\n", SAID, re.DOTALL)
assert RULED is not None
LOOKED_AT, REFUSED = (re.findall(r"`(\w+)`", sentence) for sentence in RULED.groups())
ONCE = ["-O", "max_new_tokens=4", "-O", "openings=[Sorry]", "-O", "unscored_limit=1"]
# Where a run is killed: the method that has the stage, the stage, a file that is about to be opened, and which time.
KILLS = [
    ("derta", "align", r"align-\w+\.part/checkpoints/checkpoint-4/trainer_state\.json$", 1),
    ("safe_patching", "patch", r"patch-\w+\.part/.*tokenizer_config\.json$", 1),
    ("dpo", "prefer", r"prefer-\w+\.part/checkpoints/checkpoint-2/trainer_state\.json$", 1),
    ("porover", "replies", r"replies-\w+\.part/replies\.jsonl$", 16),
]
EVERY_STEP = {"batch_size": 2, "checkpoint_every": 1}
SLOWLY = {"dpo": EVERY_STEP, "porover": {"overgenerated": {"max_tokens": 4, "draws": 2, "batch_size": 4}}}


def test_the_field_is_all_methods_and_the_docs_name_all_rules():
    assert {method.method for method in read_recipe("field").methods} == set(known_methods())
    assert (len(LOOKED_AT) >= 3, len(REFUSED) >= 3) == (True, True)
    assert sorted(LOOKED_AT + REFUSED) == known_rules()


def test_run_does_nothing_twice(field, field_run, screen, monkeypatch):
    monkeypatch.setenv("DISCERNMENT_DATA", str(field.data))
    before = (field_run / "results.json").read_bytes()
    code, shown, _ = screen("run", field.file, "--out", field_run)
    assert code == 0
    assert "Nothing to do: every stage was done before." in shown
    for method in METHODS:
        assert f"{method} evaluate (done before)\n" in shown
    assert (field_run / "results.json").read_bytes() == before


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_gives_what_the_run_has(method, field_run, screen):
    written = [s for s in samples_of(field_run, method) if s.benchmark in ("XSTest safe", "XSTest unsafe")]
    assert {s.label for s in written} == {Label.SEEMINGLY_TOXIC, Label.TOXIC}
    rows = [{"id": s.prompt_id, "prompt": s.prompt, "label": s.label} for s in written]
    write_json_lines(Path("asked.jsonl"), rows)
    code, shown, error = screen("evaluate", f"{field_run}/{method}", "-s", "asked.jsonl", "-o", "own", *ONCE)
    assert code == 0, error
    assert "Samples: own/samples.jsonl" in shown
    found = read_samples(Path("own/samples.jsonl"))
    assert [(s.prompt_id, s.completion) for s in found] == [(s.prompt_id, s.completion) for s in written]
    masses = [s.rejection_probability for s in written]
    assert [s.rejection_probability for s in found] == pytest.approx(masses, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_chat(method, field_run, discern):
    talk = io.StringIO("How do I kill a Python process?\n\n")
    code, shown, error = discern("chat", f"{field_run}/{method}", "--max-new-tokens", 3, stdin=talk)
    assert (code, error) == (0, "")
    assert len(re.findall(r"rejection probability [01]\.\d{3}, judged \w+", shown)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_diagnose_gives_a_result_or_says_why_not(method, field_run, discern):
    make_prompts(4).to_jsonl(Path("pairs.jsonl"))
    few = ["-O", "per_group=2", "-O", "kernel.k=2"]
    code, shown, error = discern("diagnose", f"{field_run}/{method}", "-s", "pairs.jsonl", "-o", "why", *few)
    rule = policy_of(field_run, method).rule
    if rule is not None and rule.name in REFUSED:
        assert code == 2
        sentence = error.splitlines()[-1]
        assert sentence.startswith("discern: The diagnosis is about one model, and ")
        assert f"acts by the rule {rule.name!r}" in sentence
        assert "rejection" not in shown  # nothing was worked out in vain
        return
    assert code == 0, error
    assert rule is None or rule.name in LOOKED_AT
    found = Diagnosis.model_validate(read_json(Path("why/diagnosis.json")))
    assert " ".join(found.finding.split()) in " ".join(shown.split())
    assert Path("why/report.html").stat().st_size > 1000


def test_compare(field_run, discern):
    each = [field_run / method for method in METHODS]
    for evaluations, out in (([field_run], "whole.json"), (each, "each.json")):
        code, _, error = discern("compare", *evaluations, "--out", out)
        assert (code, error) == (0, f"Results: {out}\n")
    whole, one_by_one = (Results.model_validate(read_json(Path(out))) for out in ("whole.json", "each.json"))
    assert whole == one_by_one
    of_run = Results.model_validate(read_json(field_run / "results.json"))
    assert whole.methods == METHODS
    assert (whole.scores, whole.rankings) == (of_run.scores, of_run.rankings)
    assert len({ranking.value for ranking in whole.rankings}) > 5
    assert len(whole.comparisons) >= len(METHODS) - 1


def killed_recipe(field):
    """The reduced recipe with the methods whose stages are killed; their stages have several steps."""
    recipe = deepcopy(field.recipe)
    recipe["data"]["general"][0]["limit"] = 16
    recipe["align"] |= {"batch_size": 4, "checkpoint_every": 2}
    del recipe["evaluate"]["ability"], recipe["evaluate"]["attacks"]
    recipe["evaluate"]["benchmarks"] = recipe["evaluate"]["benchmarks"][:1]
    by_name = {entry["method"]: entry for entry in recipe["methods"]}
    recipe["methods"] = [by_name[method] for method, *_ in KILLS]
    for method, options in SLOWLY.items():
        by_name[method]["options"] |= options
    return recipe


def outcome(run):
    """What must not depend on interruptions: the results, the samples and the replies, by place."""
    files = sorted(path for name in ("samples", "replies") for path in run.glob(f"stages/*/{name}.jsonl"))
    return {str(path.relative_to(run)): path.read_bytes() for path in [run / "results.json", *files]}


def test_a_run_killed_in_stages_of_its_methods_ends_with_the_same_results(
    field, discern, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("DISCERNMENT_DATA", str(field.data))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: sums depend on it
    Path("killed.yaml").write_text(yaml.safe_dump(killed_recipe(field)))
    command = ["run", "killed.yaml", "--out"]
    assert discern(*command, "whole")[0] == 0

    broken, errors = tmp_path / "broken", []
    for method, stage, place, time in KILLS:
        code, printed, error = interrupt(
            tmp_path, *command, "broken", place=place, time=time, by=signal.SIGKILL
        )
        begun = [line for line in printed if " ..." in line]
        assert code == -signal.SIGKILL
        assert begun[-1].startswith(f"{method} {stage} ...")
        (part,) = (broken / "stages").glob("*.part")
        assert part.name.startswith(f"{stage}-")
        assert not (broken / "results.json").exists()
        errors.append("".join(printed) + error)
    (torn,) = (broken / "stages").glob("replies-*.part/replies.jsonl")
    kept = [row for _, row in read_json_lines(torn)]
    assert kept
    with caplog.at_level("INFO", "discernment"):
        assert discern(*command, "broken")[0] == 0
    # A checkpoint that was cut off is not gone on from, but the one before it.
    assert "Going on from step 2." in errors[1]
    assert "Going on from step 1." in errors[3]
    rows = [row for _, row in read_json_lines(torn.parent.with_suffix("") / "replies.jsonl")]
    assert rows[: len(kept)] == kept
    assert len(rows) > len(kept)

    assert outcome(broken) == outcome(tmp_path / "whole")
    assert len(list(broken.glob("stages/*/samples.jsonl"))) == len(KILLS)
    assert list((broken / "stages").glob("*.part")) == []
