"""lm-evaluation-harness runs on a policy, offline, from a local task file."""

import copy
import json
import math
import sys

import pytest
import torch
import yaml

from discernment.errors import DataError, ModelError, RecipeError
from discernment.evaluation.harness import as_harness_model, run_tasks
from discernment.policies.policy import Policy
from rules import Pushed, Unchanged

pytest.importorskip("lm_eval", reason="the extra `capabilities` is not installed")

QUESTIONS = [
    ("What do bees make?", ["honey", "bread", "paper"], 0),
    ("Which one is a colour?", ["seven", "green"], 1),
    ("What falls from clouds?", ["rain", "sand", "salt", "milk"], 0),
    ("How many legs has a dog?", ["two", "six", "four"], 2),
    ("What do you read?", ["a book", "a spoon"], 0),
    ("Where do fish live?", ["in trees", "in ovens", "in water"], 2),
]
TASK = {
    "task": "six_questions",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "questions.json"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    made = tmp_path / "tasks"
    made.mkdir()
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (made / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "six.yaml").write_text(yaml.safe_dump(TASK))
    return made


def chosen(policy, question, choices):
    """The choice with the highest log-likelihood, by the model alone."""
    tokenizer = policy.chat.tokenizer
    context = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    scores = []
    for choice in choices:
        whole = tokenizer(f"Question: {question}\nAnswer: {choice}")["input_ids"]
        with torch.inference_mode():
            logits = policy.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[n - 1, whole[n]]) for n in range(len(context), len(whole))))
    return max(range(len(choices)), key=scores.__getitem__)


def test_a_local_task_gives_what_the_model_says(tiny_policy, folder):
    right = [chosen(tiny_policy, q, c) == a for q, c, a in QUESTIONS]
    assert 0 < sum(right) < len(right)
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / (len(right) - 1))
    for tasks in ([folder], [str(folder / "six.yaml")]):
        [found] = run_tasks(tiny_policy, tasks, batch_size=4)
        assert (found.task, found.metric, found.filter, found.questions) == (
            "six_questions",
            "acc",
            "none",
            6,
        )
        assert (found.value, found.standard_error) == pytest.approx((share, error))
    assert [s.questions for s in run_tasks(tiny_policy, [folder], limit=2)] == [2]


def test_what_cannot_be_run_is_said(tiny_policy, folder, tmp_path):
    pushed = Policy(tiny_policy.model, tiny_policy.chat, "pushed", Pushed())
    with pytest.raises(ModelError, match=r"pushed reads questions in contexts of its own .*without `chat`"):
        run_tasks(pushed, [folder], chat=True)
    (folder / "questions.json").unlink()
    with pytest.raises(DataError, match=r"six\.yaml' cannot be loaded"):
        run_tasks(tiny_policy, [folder])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="holds no task file"):
        run_tasks(tiny_policy, [tmp_path / "empty"])


def test_a_missing_extra_is_named(tiny_policy, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(RecipeError, match=r"pip install 'discernment\[capabilities\]'"):
        run_tasks(tiny_policy, [folder])


def test_a_rule_scores_long_texts_and_answers_long_questions(tiny_policy):
    from lm_eval.api.instance import Instance

    def asked(kind, *arguments):
        return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0)]

    ruled = copy.copy(tiny_policy)
    ruled.rule = Unchanged()
    bare, model = as_harness_model(tiny_policy), as_harness_model(ruled)
    rolling = asked("loglikelihood_rolling", "Bees make honey, and fish live in water.")
    assert model.loglikelihood_rolling(rolling) == pytest.approx(
        bare.loglikelihood_rolling(rolling), abs=1e-4
    )
    long = asked("generate_until", "word " * (2 * bare.max_length), {"max_gen_toks": 4, "until": []})
    [reply] = model.generate_until(long)
    assert isinstance(reply, str)


@pytest.mark.parametrize("alias", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_a_rule_replies_as_the_task_asks(tiny_policy, alias):
    from lm_eval.api.instance import Instance

    def asked(**options):
        return [Instance(request_type="generate_until", doc={}, arguments=("What?", options), idx=0)]

    ruled = copy.copy(tiny_policy)
    ruled.rule = Unchanged()
    bare, model = as_harness_model(tiny_policy), as_harness_model(ruled)
    for count in (1, 6):
        options = {alias: count, "until": [], "do_sample": False}
        [reply] = model.generate_until(asked(**options))
        assert reply == bare.generate_until(asked(**options), disable_tqdm=True)[0] != ""
    with pytest.raises(RecipeError, match="draws its replies, and tiny takes the likeliest token each time"):
        model.generate_until(asked(**{alias: 2, "until": [], "do_sample": True, "temperature": 0.7}))
