"""A judge as a recipe names it: the one that is meant, with the options that were given, or one clear sentence."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from discernment.errors import DataError, RecipeError
from discernment.judges import (
    EnsembleJudge,
    HubClassifierJudge,
    JudgeSpec,
    KeywordJudge,
    LlamaGuardJudge,
    LlmJudge,
    WildGuardJudge,
    train_classifier,
)
from discernment.judges.labelled import LabelledCompletion
from discernment.judges.verdict import Verdict
from discernment.models.model_spec import ModelSpec

LLM: dict[str, Any] = {"kind": "llm", "model": "m", "base_url": "http://localhost:1/v1"}


def spec(value: Any) -> JudgeSpec:
    """What is read from `value`, after a detour over the form in which a run stores it."""
    read = JudgeSpec.model_validate(value)
    assert JudgeSpec.model_validate(read.model_dump(mode="json", exclude_defaults=True)) == read
    return read


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")


def test_keywords_are_the_default() -> None:
    assert spec({}) == spec("keywords") == JudgeSpec()
    judge = JudgeSpec().build()
    assert isinstance(judge, KeywordJudge)
    assert JudgeSpec().fingerprint == judge.fingerprint


def test_a_trained_classifier(tmp_path: Any) -> None:
    examples = [
        LabelledCompletion(prompt=f"p{n}", completion=text, verdict=verdict, model="m")
        for n in range(6)
        for text, verdict in (("I can't help.", Verdict.REFUSAL), ("Use this.", Verdict.COMPLIANCE))
    ]
    trained = train_classifier(examples)
    path = tmp_path / "judge.safetensors"
    trained.save(path)
    read = spec({"kind": "classifier", "path": str(path)})
    assert read.fingerprint == trained.fingerprint  # what it has learned, not where it lies
    exchanges = [("q", "I can't help with it."), ("q", "Use that.")]
    assert [read.build().judge(*e) for e in exchanges] == [trained.judge(*e) for e in exchanges]
    with pytest.raises(DataError, match="There is no classifier"):
        spec({"kind": "classifier", "path": str(tmp_path / "gone")}).build()


def test_model_judges(model_folder: Any) -> None:
    folder = str(model_folder())
    for kind, judge_class in (("wildguard", WildGuardJudge), ("llama_guard", LlamaGuardJudge)):
        read = spec({"kind": kind, "model": {"model": folder, "dtype": "float32"}})
        assert type(read.build()) is judge_class
        assert read.fingerprint == judge_class(ModelSpec(model=folder, dtype="float32")).fingerprint
    assert spec("wildguard").build().name == "allenai/wildguard"
    plain = spec({"kind": "hub", "model": folder})
    assert plain.fingerprint == HubClassifierJudge(ModelSpec(model=folder)).fingerprint
    own = spec(
        {"kind": "hub", "model": folder, "labels": {"No": "refusal"}, "template": "{prompt}{completion}"}
    )
    judge = own.build()
    assert isinstance(judge, HubClassifierJudge)
    assert (judge.labels, judge.template) == ({"no": Verdict.REFUSAL}, "{prompt}{completion}")
    assert own.fingerprint != plain.fingerprint


def test_a_language_model(key: None, tmp_path: Any) -> None:
    read = spec({**LLM, "structured": False, "max_tokens": 9, "concurrency": 2, "prices": [1, 2.5]})
    judge = read.build(tmp_path / "judgements.jsonl")
    assert isinstance(judge, LlmJudge)
    assert (judge.name, judge.base_url, judge.structured) == ("m", LLM["base_url"], False)
    assert (judge.max_tokens, judge.concurrency, judge.prices) == (9, 2, (1, 2.5))
    assert (tmp_path / "judgements.jsonl").is_file()
    same = spec({**LLM, "structured": False, "max_tokens": 9, "retries": 0, "timeout": 3})
    assert same.fingerprint == read.fingerprint
    assert spec(LLM).fingerprint != read.fingerprint


def test_a_language_model_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="has no key; set OPENAI_API_KEY"):
        spec(LLM).build()


def test_an_ensemble_keeps_the_judgements_of_its_members(key: None, tmp_path: Any) -> None:
    priced = {**LLM, "model": "n", "prices": [1, 1]}
    judge = spec({"kind": "ensemble", "judges": ["keywords", priced, LLM]}).build(
        tmp_path / "judgements.jsonl"
    )
    assert isinstance(judge, EnsembleJudge)
    assert judge.name == "majority of keywords, n, m"
    _, first, second = judge.judges
    assert isinstance(first, LlmJudge)
    assert isinstance(second, LlmJudge)
    first.usage.requests, first.usage.cost, second.usage.requests = 3, 0.5, 4
    assert judge.usage is not None
    assert (judge.usage.requests, judge.usage.cost) == (7, None)
    assert EnsembleJudge([KeywordJudge(), first]).usage == first.usage
    assert EnsembleJudge([KeywordJudge(), KeywordJudge()]).usage is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("keyword", "Input should be 'keywords', 'encoder', 'classifier', 'hub'"),
        ({"kind": "classifier"}, "the judge `classifier` needs `path`"),
        ({"kind": "llama_guard"}, "the judge `llama_guard` needs `model`"),
        ({"kind": "ensemble"}, "the judge `ensemble` needs `judges`"),
        ({"kind": "ensemble", "judges": ["keywords"]}, "at least 2 items"),
        ({"path": "x"}, "the judge `keywords` has no option `path`; leave it out"),
        (
            {"kind": "hub", "model": "m", "timeout": 3, "base_url": "http://x"},
            "the judge `hub` has no option `base_url`, `timeout`",
        ),
        ({**LLM, "api_key": "secret"}, "a key is never written down; put it into the variable OPENAI_API_KEY"),
        ({**LLM, "base_url": "https://user:sk-1@host/v1"}, "a key is never written down"),
        ({**LLM, "base_url": "localhost:8000/v1"}, "an address begins with http:// or https://"),
        ({**LLM, "base_url": "http://host/v1?key=sk-1"}, "ends with its path, without `?`"),
        ({**LLM, "model": {"model": "m", "device": "cpu"}}, "takes only the model's name"),
        ({**LLM, "prices": [1]}, "Field required"),
        ({**LLM, "concurrency": 0}, "greater than or equal to 1"),
        ({"kind": "hub", "model": "m", "template": "{prompt}"}, "it needs the places {prompt} and {completion}"),
        ({"kind": "hub", "model": "m", "template": '{"a": {prompt}{completion}}'}, "double all other braces"),
    ],
)  # fmt: skip
def test_mistakes(value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JudgeSpec.model_validate(value)
    (problem,) = caught.value.errors()
    assert message in problem["msg"]
