"""General ability and flips as stages of a run: what they measure, that they are done once, and what they refuse."""

import json
import sys

import pytest
import yaml

from discernment.diagnosis.diagnosis import DiagnoseOptions, diagnose
from discernment.errors import DataError, RecipeError
from discernment.evaluation.ability import measure_ability
from discernment.evaluation.harness import Tasks, run_tasks
from discernment.evaluation.results import Results
from discernment.evaluation.sample import read_samples
from discernment.evaluation.second_judge import read_second_verdicts
from discernment.files import read_json
from discernment.judges import train_classifier
from discernment.judges.labelled import read_labelled
from discernment.kernel.kernel import KernelOptions
from discernment.policies.policy import Policy
from discernment.prompts import Label, PromptSet, Provenance
from discernment.prompts.sources import PromptSource, load_source, load_sources
from discernment.reporting.pages.run import write_report
from discernment.reporting.tables.csv_files import write_tables
from discernment.runs.manifest import policy_of
from discernment.runs.recipe import parse_recipe, read_recipe
from discernment.runs.run import run_recipe
from discernment.runs.stages import Quiet
from page import Page
from tiny import make_benign, make_prompts

QUESTIONS = [
    {"question": "What do bees make?", "choices": ["honey", "bread", "paper"], "answer": 0},
    {"question": "Which one is a colour?", "choices": ["seven", "green"], "answer": 1},
    {"question": "How many legs has a dog?", "choices": ["two", "six", "four"], "answer": 2},
]
TASK = {
    "task": "three_questions",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.json"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


class Heard(Quiet):
    def __init__(self):
        self.stages = []
        self.told = []

    def stage(self, name, owner, *, reused):
        self.stages.append((name, owner, reused))

    def progress(self, what, done, of):
        self.told.append((what, done, of))


@pytest.fixture
def content(model_folder, tmp_path):
    sets = {
        "general": make_benign(4),
        "safety": make_prompts(4),
        "test": PromptSet(make_prompts(9)[8:], Provenance(name="test")),
    }
    # Of the twelve prompts with replies, general has four; one more comes without a reply.
    benign = [
        p.model_copy(update={"response": p.response if n < 12 else None})
        for n, p in enumerate(make_benign(13))
    ]
    sets["benign"] = PromptSet(benign, Provenance(name="benign"))
    for name, prompts in sets.items():
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
    return {
        "name": "tiny",
        "model": str(model_folder()),
        "seed": 3,
        "data": {name: str(tmp_path / f"{name}.jsonl") for name in ("general", "safety")},
        "align": {"batch_size": 4, "learning_rate": 3e-3},
        "methods": ["base", "stl"],
        "evaluate": {
            "max_new_tokens": 4,
            "unscored_limit": 1,
            "batch_size": 8,
            "openings": ["Sorry", "I can't"],
            "benchmarks": [{"set": str(tmp_path / "test.jsonl"), "name": "pairs"}],
        },
    }


@pytest.fixture
def benign(tmp_path):
    return str(tmp_path / "benign.jsonl")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra `capabilities` is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    made = tmp_path / "tasks"
    made.mkdir()
    write_questions(made, QUESTIONS)
    (made / "three.yaml").write_text(yaml.safe_dump(TASK))
    return made


def write_questions(folder, rows):
    (folder / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def changed(content, **evaluate):
    return parse_recipe({**content, "evaluate": {**content["evaluate"], **evaluate}}, "r")


def stages(heard, *, reused=False):
    return [(name, owner) for name, owner, again in heard.stages if again is reused]


def model_of(directory, method):
    return Policy.load(policy_of(directory, method))


def test_kernel_similarity_is_that_of_a_diagnosis_of_each_model(content, tmp_path):
    prompts = tmp_path / "probes.jsonl"
    make_prompts(8).to_jsonl(prompts)
    directory, heard = tmp_path / "run", Heard()
    plain = run_recipe(changed(content), directory)
    assert plain.results.kernels == []
    recipe = parse_recipe(
        {**content, "diagnose": {"kernel": {"prompts": str(prompts), "k": 2, "per_group": 4}}}, "r"
    )
    summary = run_recipe(recipe, directory, heard)
    assert stages(heard) == [("diagnose", "base"), ("diagnose", "stl")]
    assert summary.results.model_copy(update={"kernels": []}) == plain.results

    options = DiagnoseOptions(kernel=KernelOptions(k=2), per_group=4)
    for method in ("base", "stl"):
        policy = Policy.load(content["model"]) if method == "base" else model_of(directory, method)
        expected = diagnose(policy, load_sources([PromptSource(set=str(prompts))], "kernel"), options)
        found = {row.label: row for row in summary.results.kernels if row.policy == method}
        assert list(found) == [Label.SEEMINGLY_TOXIC, Label.TOXIC]
        for row in expected.steps_on_toxic:
            assert row.mean == pytest.approx(found[row.row].mean)
            assert (row.low, row.high, row.pairs) == (
                found[row.row].low,
                found[row.row].high,
                found[row.row].pairs,
            )
    assert len({row.mean for row in summary.results.kernels}) == 4
    assert Results.model_validate(read_json(directory / "results.json")) == summary.results
    page = Page(write_report(directory).read_text(encoding="utf-8"))
    assert "kernel" in page.sections
    write_tables(tmp_path / "tables", summary.results)
    assert (tmp_path / "tables/kernel.csv").read_text().count("\n") == 5

    again = Heard()
    run_recipe(recipe, directory, again)
    assert stages(again) == []


def test_kernel_similarity_needs_both_labels_before_the_first_stage(content, tmp_path):
    recipe = parse_recipe({**content, "diagnose": {"kernel": {"prompts": "starter/benign"}}}, "r")
    heard = Heard()
    with pytest.raises(DataError, match="has no toxic ones"):
        run_recipe(recipe, tmp_path / "run", heard)
    make_prompts(1).to_jsonl(tmp_path / "one.jsonl")
    recipe = parse_recipe({**content, "diagnose": {"kernel": {"prompts": str(tmp_path / "one.jsonl")}}}, "r")
    with pytest.raises(DataError, match=r"two of each at least, and .* has 1 toxic one;"):
        run_recipe(recipe, tmp_path / "run", heard)
    assert heard.stages == []


def test_ability_is_that_of_each_trained_method_beside_the_base_model(content, benign, tmp_path):
    directory, heard = tmp_path / "run", Heard()
    plain = run_recipe(changed(content), directory)
    assert (plain.results.abilities, plain.results.tasks, plain.results.flips) == ([], [], [])
    assert plain.seen_in_training == {}  # of the benchmark
    recipe = changed(content, ability=benign, flips=3)
    summary = run_recipe(recipe, directory, heard)

    # What was there is taken, and nothing that it says changes.
    assert stages(heard) == [("flips", "base"), ("ability", "stl"), ("flips", "stl")]
    assert summary.results.model_copy(update={"abilities": [], "flips": []}) == plain.results
    assert summary.seen_in_training == {"ability": 4}
    assert ("replies compared", 12, 12) in heard.told
    assert read_recipe(directory / "recipe.yaml") == recipe

    [found] = summary.results.abilities
    base = Policy.load(content["model"])
    expected = measure_ability(model_of(directory, "stl"), base, load_source(benign), seed=3)
    assert found == expected.model_copy(update={"policy": "stl", "base": content["model"]})
    assert (found.prompts, found.kl > 1e-4, found.kl_low is not None) == (12, True, True)
    assert Results.model_validate(read_json(directory / "results.json")) == summary.results
    record = read_json(next(directory.glob("stages/ability-*/stage.json")))
    assert (record["steps"], record["tokens"] > found.tokens) == (12, True)

    page = write_report(directory).read_text(encoding="utf-8")
    assert 'id="table-ability"' in page
    assert 'id="table-tasks"' not in page
    assert "4 of <bdi>ability</bdi>" in page

    assert run_recipe(recipe, directory).stages_run == 0
    renamed = {**content, "methods": ["base", {"method": "stl", "name": "tuned"}]}
    again = run_recipe(changed(renamed, ability=benign, flips=3), directory)
    assert again.stages_run == 0
    assert [a.policy for a in again.results.abilities] == ["tuned"]
    assert [f.method for f in again.results.flips] == ["base", "tuned"]


def test_flips_compare_a_second_evaluation_with_the_first(content, tmp_path):
    directory = tmp_path / "run"
    summary = run_recipe(changed(content, flips=1), directory)
    counted = [(f.method, f.batch_size, f.other_batch_size, f.prompts) for f in summary.results.flips]
    assert counted == [("base", 8, 1, 10), ("stl", 8, 1, 10)]
    for flip in summary.results.flips:  # a float32 model has none
        assert (flip.changed, flip.flipped) == (0, 0)
        assert 0 <= flip.rejection_change < 1e-6
    methods = read_json(directory / "manifest.json")["methods"]
    for method in ("base", "stl"):
        first, second = (
            read_samples(directory / "stages" / stage / "samples.jsonl")
            for stage in methods[method]["stages"]
            if stage.startswith(("evaluate-", "flips-"))
        )
        assert [s.prompt_id for s in first] != [s.prompt_id for s in second]
        assert {(s.prompt_id, s.completion) for s in first} == {(s.prompt_id, s.completion) for s in second}
    assert "in batches of 1 instead of 8" in write_report(directory).read_text(encoding="utf-8")
    # Another first evaluation is to be compared anew.
    content["methods"] = ["base"]
    bare = run_recipe(changed(content, flips=1, rejection=False), directory)
    assert (bare.stages_run, [f.rejection_change for f in bare.results.flips]) == (2, [None])


@pytest.mark.slow
def test_a_second_judge_reads_the_replies_that_are_there(content, tmp_path, monkeypatch):
    path = tmp_path / "classifier.safetensors"
    train_classifier(read_labelled("starter/verdicts"), regularisation=1.0).save(path)
    directory, heard = tmp_path / "run", Heard()
    plain = run_recipe(changed(content), directory)
    other = {"kind": "classifier", "path": str(path)}
    summary = run_recipe(changed(content, second_judge=other), directory, heard)
    assert stages(heard) == [("judge", "base"), ("judge", "stl")]
    assert ("second judgements", 10, 10) in heard.told
    assert summary.results.model_copy(update={"judge_differences": []}) == plain.results
    rows = summary.results.judge_differences
    assert [(r.method, r.judge, r.second_judge) for r in rows] == [
        ("base", "keywords", "classifier"),
        ("stl", "keywords", "classifier"),
    ]
    for row in rows:
        (stage,) = [
            s
            for s in read_json(directory / "manifest.json")["methods"][row.method]["stages"]
            if s.startswith("judge-")
        ]
        said = read_second_verdicts(directory / "stages" / stage / "verdicts.jsonl")
        assert len(said) == row.replies + row.unscored == 10
    page = Page(write_report(directory).read_text(encoding="utf-8"))
    assert "judges" in page.sections
    assert all(f"of {row.differ} replies" in page.text("summary") for row in rows if row.differ)
    assert any(row.differ for row in rows)  # what a random model says looks like nothing known
    # Judges change places: nothing is generated again.
    turned, again = changed(content, judge=other, second_judge="keywords"), Heard()
    swapped = run_recipe(turned, directory, again).results.judge_differences
    assert stages(again) == [("evaluate", "base"), ("judge", "base"), ("evaluate", "stl"), ("judge", "stl")]
    written = [p.stat().st_mtime_ns for p in directory.glob("stages/evaluate-*/completions.jsonl")]
    assert (len(written), len(set(written))) == (4, 2)  # a copy keeps its time
    assert [(r.differ, r.second_refusals) for r in swapped] == [(r.differ, r.refusals) for r in rows]
    # One that cannot judge leaves no stage that says that the two agree.
    down = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "retries": 0}
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with pytest.raises(DataError, match=r"100.0% of 10 judgements on the replies of base are unscored"):
        run_recipe(changed(content, second_judge=down, unscored_limit=0.99), tmp_path / "down")
    assert not list((tmp_path / "down/stages").glob("judge-????????????"))
    with pytest.raises(RecipeError, match="`second_judge` judges as `judge` does"):
        changed(content, second_judge="keywords")
    with pytest.raises(DataError, match="nowhere"):
        run_recipe(
            changed(content, second_judge={"kind": "classifier", "path": "nowhere"}), tmp_path / "other"
        )


def test_tasks_are_run_on_every_method(content, folder, tmp_path):
    directory, heard = tmp_path / "run", Heard()
    plain = run_recipe(changed(content), directory)
    asked = {"tasks": [str(folder)], "tasks_limit": 2}
    summary = run_recipe(changed(content, **asked), directory, heard)
    assert stages(heard) == [("tasks", "base"), ("tasks", "stl")]
    assert summary.results.model_copy(update={"tasks": []}) == plain.results
    base, stl = summary.results.tasks
    assert (base.policy, base.task, base.metric, base.questions) == ("base", "three_questions", "acc", 2)
    [expected] = run_tasks(model_of(directory, "stl"), [folder], limit=2, seed=3)
    assert stl == expected.model_copy(update={"policy": "stl"})
    assert "three_questions, acc" in write_report(directory).read_text(encoding="utf-8")

    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/utils.pyc").touch()
    assert run_recipe(changed(content, **asked), directory).stages_run == 0
    write_questions(folder, QUESTIONS[:1])
    fewer = run_recipe(changed({**content, "methods": ["base"]}, **asked), directory)
    assert (fewer.stages_run, [s.questions for s in fewer.results.tasks]) == (1, [1])


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        pytest.param("no_such_task", RecipeError, "knows no task 'no_such_task'", marks=pytest.mark.slow),
        ("three.yaml", RecipeError, r"The task .*three\.yaml is a file; name the folder"),
        ("empty", RecipeError, "holds no task file"),
        ("broken", DataError, r"three\.yaml' cannot be loaded"),
    ],
)
def test_tasks_that_cannot_be_run_are_told_before_the_first_stage(
    content, folder, tmp_path, tasks, error, message
):
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/three.yaml").write_text((folder / "three.yaml").read_text())
    named = tasks if tasks == "no_such_task" else str(folder / tasks)
    with pytest.raises(error, match=message) as caught:
        run_recipe(changed(content, tasks=[named]), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/stages").exists()


def test_a_missing_extra_is_told_before_the_first_stage(content, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RecipeError, match=r"pip install 'discernment\[capabilities\]'"):
        run_recipe(changed(content, tasks=["arc_easy"]), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


def test_ability_needs_replies(content, tmp_path):
    make_prompts(2, responses=False).to_jsonl(tmp_path / "bare.jsonl")
    with pytest.raises(DataError, match="ability has no prompt with a response"):
        run_recipe(changed(content, ability=str(tmp_path / "bare.jsonl")), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


def test_the_fingerprint_of_tasks_is_that_of_their_files(folder, tmp_path):
    tasks = Tasks((str(folder), "arc_easy"))
    before = tasks.fingerprint
    assert before["tasks"][1] == "arc_easy"
    assert Tasks(("arc_easy", str(folder))).fingerprint != before
    folder.rename(tmp_path / "moved")
    assert Tasks((str(tmp_path / "moved"), "arc_easy")).fingerprint == before
    (tmp_path / "moved/utils.py").write_text("def f(x):\n    return x\n")
    assert Tasks((str(tmp_path / "moved"), "arc_easy")).fingerprint != before
