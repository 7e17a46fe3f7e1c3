"""Recipes with models behind an endpoint: beside the recipe's own, or in its place."""

import pytest

from discernment.errors import DiscernmentError, ModelError, RecipeError
from discernment.files import read_json
from discernment.policies.policy import Policy
from discernment.reporting.pages.run import write_report
from discernment.runs.recipe import parse_recipe
from discernment.runs.run import run_recipe
from endpoint import PolicyServer, running
from tiny import make_benign, make_prompts


@pytest.fixture
def folder(model_folder):
    return model_folder()


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    made = PolicyServer(Policy.load(str(folder)))
    with running(made):
        yield made


@pytest.fixture
def content(folder, server, tmp_path):
    sets = {"pairs": make_prompts(4), "easy": make_benign(3)}
    for name, prompts in sets.items():
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
    return {
        "name": "tiny",
        "model": str(folder),
        "methods": ["base", {"method": "base", "name": "gpt", "options": {"model": server.name}}],
        "data": {
            "general": str(tmp_path / "easy.jsonl"),
            "safety": {"set": str(tmp_path / "pairs.jsonl"), "label": "toxic"},
            "contrast": str(tmp_path / "pairs.jsonl"),
        },
        "evaluate": {
            "max_new_tokens": 4,
            "openings": ["Sorry", "I can't"],
            "benchmarks": [{"set": str(tmp_path / f"{name}.jsonl"), "name": name} for name in sets],
        },
    }


def test_a_line_of_the_methods_names_a_model_behind_an_endpoint(content, server, tmp_path):
    own = {"method": "prompted", "name": "kind gpt", "on": "gpt", "rule": {"system": "Be kind."}}
    asked = {
        "attacks": ["past_tense", "completion_prefix"],
        "ability": str(tmp_path / "easy.jsonl"),
        "second_judge": {"kind": "keywords", "language": "en"},
    }
    content = {
        **content,
        "methods": [*content["methods"], own],
        "evaluate": {**content["evaluate"], **asked},
    }
    summary = run_recipe(parse_recipe(content, "r"), tmp_path / "run")
    results = summary.results
    assert results.methods == ["base", "gpt", "kind gpt"]
    by_method = {
        m: [s.model_copy(update={"method": ""}) for s in results.scores if s.method == m]
        for m in results.methods
    }
    assert by_method["base"] == by_method["gpt"] != []
    assert {(left.method, left.what) for left in results.left_out} == {
        (method, what)
        for method in ("gpt", "kind gpt")
        for what in (
            "rejection probability",
            "replies under the attack completion_prefix",
            "ability on given replies",
        )
    }
    assert {drop.attack for drop in results.attack_drops if drop.method == "base"} == {
        "past_tense",
        "completion_prefix",
    }
    assert {drop.attack for drop in results.attack_drops if drop.method == "gpt"} == {"past_tense"}
    assert {row.method for row in results.judge_differences} == set(results.methods)
    said = {tuple(turn["role"] for turn in body["messages"]) for body in server.bodies}
    assert said == {("user",), ("system", "user")}
    page = write_report(summary.directory).read_text("utf-8")
    for left_out in results.left_out:
        assert f"{left_out.method} has no {left_out.what}" in page
    assert read_json(summary.directory / "results.json")["left_out"] == [
        left.model_dump() for left in results.left_out
    ]

    asked_so_far = len(server.bodies)
    faster = {"model": {"model": server.name, "endpoint": {"concurrency": 2}}}
    content["methods"][1] = {**content["methods"][1], "options": faster}
    again = run_recipe(parse_recipe(content, "r"), tmp_path / "run")
    assert (again.stages_run, len(server.bodies)) == (0, asked_so_far)


def test_the_recipes_model_may_be_behind_an_endpoint(content, server, tmp_path):
    own = {"method": "prompted", "rule": {"system": "Be kind."}}
    summary = run_recipe(
        parse_recipe({**content, "model": server.name, "methods": ["base", own]}, "r"), tmp_path / "run"
    )
    assert summary.results.base_model == server.name
    assert len(summary.results.comparisons) == 3
    assert len(server.bodies) == 2 * 11


@pytest.mark.parametrize(
    ("methods", "kind", "words"),
    [
        (["stl"], ModelError, "The stage 'align' of stl needs the weights of a model, and openai:"),
        (["dcr"], ModelError, "The stage 'refine' of dcr needs the weights of a model, and openai:"),
        (["derta"], ModelError, "of derta needs the weights of a model, and openai:"),
        (
            [{"method": "self_cd", "on": "base"}],
            RecipeError,
            "The rule 'self_cd' acts on logits or hidden states, and openai:",
        ),
        (
            [{"method": "scans", "on": "base"}],
            ModelError,
            "of scans needs the weights of a model, and openai:",
        ),
    ],
    ids=["stl", "dcr", "derta", "self_cd", "scans"],
)
def test_what_needs_more_than_replies_is_told_before_the_first_stage(
    content, server, tmp_path, methods, kind, words
):
    content = {**content, "model": server.name, "refine": {"layer": 2}, "methods": methods}
    with pytest.raises(kind) as raised:
        run_recipe(parse_recipe(content, "r"), tmp_path / "run")
    assert words in str(raised.value)
    assert server.bodies == []
    assert not list((tmp_path / "run").glob("stages/*"))


def test_a_key_that_is_missing_is_told_before_the_first_stage(content, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RecipeError, match="The endpoint has no key; set OPENAI_API_KEY"):
        run_recipe(parse_recipe(content, "r"), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


def test_only_a_model_behind_an_endpoint_stands_beside_the_recipes(content, folder):
    content["methods"][1] = {"method": "base", "name": "other", "options": {"model": str(folder)}}
    with pytest.raises(DiscernmentError, match=r"methods.1.options.model.* is not behind an endpoint"):
        parse_recipe(content, "r")
