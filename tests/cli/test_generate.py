"""`discern prompts generate` and `discern prompts export`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from discernment.cli.prompts.generate import parse_chat_model
from discernment.errors import DataError, ModelError, RecipeError, RunError
from discernment.synthesis import EndpointModel, PolicyModel
from tiny import make_benign, make_prompts


def test_notation_of_models(monkeypatch, model_folder) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for text, name, address in (
        ("openai:gpt", "gpt", None),
        ("openai:org/model@v2", "org/model@v2", None),
        ("openai:org/m:8b@http://localhost:8000/v1", "org/m:8b", "http://localhost:8000/v1"),
        ("openai:m@v2@https://host/v1", "m@v2", "https://host/v1"),
    ):
        model = parse_chat_model(text)
        assert isinstance(model, EndpointModel)
        assert (model.name, model.base_url) == (name, address)
    folder = str(model_folder())
    local = parse_chat_model(folder)
    assert isinstance(local, PolicyModel)
    assert local.name == folder
    for text in ("openai:", "openai:@http://localhost/v1"):
        with pytest.raises(RecipeError, match="names no model"):
            parse_chat_model(text)
    for text in ("openai:m@localhost:8000/v1", "openai:m@localhost", "openai:m@host.org/v1"):
        with pytest.raises(RecipeError, match="an address begins with http"):
            parse_chat_model(text)
    with pytest.raises(ModelError, match="no model folder"):
        parse_chat_model("./nowhere")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RecipeError, match="OPENAI_API_KEY"):
        parse_chat_model("openai:gpt")


def test_generate_with_a_local_policy(invoke, model_folder) -> None:
    folder = str(model_folder(max_position_embeddings=2048))
    make_prompts(2).to_jsonl(Path("seeds.jsonl"))
    command = ["prompts", "generate", "-o", "out", "-g", folder, "-m", folder, "--seeds", "seeds.jsonl"]
    # Random weights write nothing that can be read: two rewrites are asked for, the answers kept, and it says so.
    with pytest.raises(DataError, match="rewrites gave no usable prompt: 2 of 2 answers"):
        invoke(*command, "-O", "max_tokens=4", "-O", "moderation_max_tokens=4")
    assert len(Path("out/answers/rewrites.jsonl").read_text().splitlines()) == 2
    make_prompts(2).to_jsonl(Path("mine/toxic.jsonl"))
    own = Path("mine/toxic.jsonl").read_bytes()
    with pytest.raises(RecipeError, match=r"mine/toxic\.jsonl is read, and would be replaced"):
        invoke(*command[:3], "mine", *command[4:-1], "mine/toxic.jsonl")
    with pytest.raises(RunError, match=r"mine holds toxic\.jsonl already; name another"):
        invoke(*command[:3], "mine", *command[4:])
    assert Path("mine/toxic.jsonl").read_bytes() == own
    with pytest.raises(RecipeError, match="did you mean `rewrites`"):
        invoke(*command, "-O", "rewritess=1")
    make_benign(2).to_jsonl(Path("benign.jsonl"))
    with pytest.raises(DataError, match="has no prompt with label toxic"):
        invoke(*command[:-1], "benign.jsonl")


def test_export(invoke) -> None:
    make_prompts(2).to_jsonl(Path("pairs.jsonl"))
    code, output = invoke("prompts", "export", "pairs.jsonl", "starter/benign:test", "-o", "task")
    assert code == 0
    rows = [json.loads(line) for line in Path("task/over_refusal.jsonl").read_text().splitlines()]
    assert {row["metadata"]["benchmark"] for row in rows} == {"pairs.jsonl", "starter/benign:test"}
    assert f"{len(rows)} prompts" in output
    assert "inspect eval over_refusal.py" in " ".join(output.split())
    with pytest.raises(DataError, match=r"task holds over_refusal\.py, over_refusal\.jsonl already"):
        invoke("prompts", "export", "pairs.jsonl", "-o", "task")
    with pytest.raises(DataError, match="nothing to export"):
        invoke("prompts", "export", "-o", "task")
    with pytest.raises(DataError, match="no suite 'x'"):
        invoke("prompts", "export", "--suite", "x", "-o", "t")
