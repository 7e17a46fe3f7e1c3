"""What a recipe asks of an evaluation: which sets, which judge, how much unscored, which attacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from discernment.errors import DataError, RecipeError
from discernment.evaluation.attacks import COMPLETION_PREFIX, attacks
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import read_json, read_json_lines
from discernment.judges.verdict import Verdict
from discernment.policies.policy import Policy
from discernment.prompts import Label
from discernment.prompts.suites import load_suite
from discernment.reporting.pages.run import write_report
from discernment.runs.recipe import Recipe, parse_recipe
from discernment.runs.run import RunSummary, run_recipe
from discernment.runs.stages import Quiet
from endpoint import ChatHandler, chat_completion, running
from tiny import make_benign, make_prompts

ATTACKS = ["rot13", "low_resource", "completion_prefix"]


class Server(ThreadingHTTPServer):
    """A judge that calls every other completion, by its length, a refusal; it fails where `broken` stands in it."""

    daemon_threads = True
    broken: str | None = None
    asked: list[str]


class Handler(ChatHandler):
    server: Server

    def reply(self, question: Any) -> None:
        text = question["messages"][1]["content"]
        found = re.search(r"<<<reply (\w+)>>>\n(.*)\n<<<end of reply", text, re.S)
        assert found is not None
        self.server.asked.append(text.replace(found[1], ""))
        failing = self.server.broken is not None and self.server.broken in text
        said = {"explanation": "", "code": found[1], "verdict": verdict(found[2]).value}
        usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
        self.send(400 if failing else 200, chat_completion({"content": json.dumps(said)}, usage=usage))


def verdict(completion: str) -> Verdict:
    return Verdict.REFUSAL if len(completion) % 2 else Verdict.COMPLIANCE


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    with running(made):
        yield made


@pytest.fixture
def content(model_folder: Any, server: Server, tmp_path: Path) -> dict[str, Any]:
    """A recipe on two benchmarks with toxic prompts and one without, judged by the server."""
    sets = {"pairs": make_prompts(4), "more": make_prompts(2), "easy": make_benign(3)}
    for name, prompts in sets.items():
        prompts.to_jsonl(tmp_path / f"{name}.jsonl")
    base_url = f"http://127.0.0.1:{server.server_port}/v1"
    return {
        "name": "tiny",
        "model": str(model_folder()),
        "methods": ["base"],
        "evaluate": {
            "max_new_tokens": 4,
            "openings": ["Sorry", "I can't"],
            "benchmarks": [{"set": str(tmp_path / f"{name}.jsonl"), "name": name} for name in sets],
            "judge": {"kind": "llm", "model": "m", "base_url": base_url, "retries": 0, "prices": [1, 10]},
        },
    }


def changed(content: dict[str, Any], **evaluate: Any) -> Recipe:
    return parse_recipe({**content, "evaluate": {**content["evaluate"], **evaluate}}, "r")


def samples_of(summary: RunSummary, stage: str) -> list[list[Sample]]:
    paths = summary.directory.glob(f"stages/{stage}-*/samples.jsonl")
    return sorted((read_samples(path) for path in paths), key=lambda found: found[0].benchmark)


# ---------------------------------------------------------------------- sets


def test_a_suite_stands_beside_the_benchmarks(content: dict[str, Any], tmp_path: Path) -> None:
    suite = [source.set for source in load_suite("quick")]
    only = {**content, "evaluate": {"suite": "quick"}}
    assert [b.set for b in parse_recipe(only, "r").evaluate.sets] == suite
    both = changed(content, suite="quick").evaluate.sets
    assert [b.name or b.set for b in both] == [*suite, "pairs", "more", "easy"]
    assert both[0].limit == load_suite("quick")[0].limit == 150
    with pytest.raises(RecipeError, match="two benchmarks are called 'oktest'; give one of them a `name`"):
        changed(content, suite="quick", benchmarks=["oktest"])


def test_a_set_of_a_suite_that_is_not_at_hand(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    # The suite's first set comes from a download where there is no file; the file of another content is refused.
    (tmp_path / "xstest.jsonl").write_text('{"prompt": "x", "label": "toxic"}\n')
    with pytest.raises(DataError, match="xstest") as caught:
        run_recipe(changed(content, suite="quick"), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/stages").exists()


# ---------------------------------------------------------------------- judge


def test_the_judge_of_the_recipe_judges(content: dict[str, Any], server: Server, tmp_path: Path) -> None:
    summary = run_recipe(changed(content), tmp_path / "run")
    ((*samples,),) = samples_of(summary, "evaluate")
    assert len(samples) == 8 + 4 + 3
    assert [s.verdict for s in samples] == [verdict(s.completion) for s in samples]
    assert len({s.verdict for s in samples}) == 2
    manifest = read_json(tmp_path / "run/manifest.json")
    assert (manifest["judge"], manifest["skipped_attacks"], summary.skipped_attacks) == ("m", {}, {})
    (stage,) = manifest["stages"].values()
    asked = len({(s.prompt, s.completion) for s in samples})
    assert stage["notes"] == {
        "judge": "m",
        "judge_usage": {
            "requests": asked,
            "from_cache": 0,
            "input_tokens": 10 * asked,
            "output_tokens": 2 * asked,
            "cost": pytest.approx(asked * (10 * 1 + 2 * 10) / 1e6),
        },
    }
    assert len(server.asked) == asked
    # How it is asked, and how much may be unscored, is no reason to evaluate again.
    same = {**content["evaluate"]["judge"], "retries": 3, "concurrency": 1, "prices": None}
    assert run_recipe(changed(content, judge=same, unscored_limit=0.5), tmp_path / "run").stages_run == 0
    assert run_recipe(changed(content, judge="keywords", unscored_limit=1), tmp_path / "run").stages_run == 1


def test_an_evaluation_that_fails_or_is_interrupted_asks_for_the_rest_alone(
    content: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    class Stop(Quiet):
        def progress(self, what: str, done: int, of: int) -> None:
            if (what, done) == ("judgements", of):
                raise KeyboardInterrupt

    directory = tmp_path / "run"
    server.broken = "neighbor"
    with pytest.raises(
        DataError,
        match=r"50.0% of 8 judgements on the replies of base to pairs are unscored "
        r"\(most often: the endpoint failed \(BadRequestError 400\)\), more than the 20.0%",
    ):
        run_recipe(changed(content), directory)
    (part,) = directory.glob("stages/evaluate-*.part")
    unscored = [s for s in read_samples(part / "samples.jsonl") if s.verdict is Verdict.UNSCORED]
    assert {s.unscored_reason for s in unscored} == {"the endpoint failed (BadRequestError 400)"}
    assert {s.label for s in unscored} == {Label.TOXIC}

    server.broken, first = None, list(server.asked)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(changed(content), directory, Stop())
    second = server.asked[len(first) :]
    assert second
    assert set(second) == {question for question in first if "neighbor" in question}
    summary = run_recipe(changed(content, unscored_limit=0), directory)
    assert len(server.asked) == len(first) + len(second)
    (samples,) = samples_of(summary, "evaluate")
    assert [s.verdict for s in samples] == [verdict(s.completion) for s in samples]
    (kept,) = directory.glob("stages/evaluate-*/judgements.jsonl")
    assert len(list(read_json_lines(kept))) == len(set(first))


def test_a_limit_that_is_lowered_holds_for_stages_done_before(
    content: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    server.broken = "neighbor"
    assert run_recipe(changed(content, unscored_limit=0.5), tmp_path / "run").stages_run == 1
    with pytest.raises(DataError, match=r"to pairs are unscored.*more than the 49.0%"):
        run_recipe(changed(content, unscored_limit=0.49), tmp_path / "run")


def test_a_judge_without_its_key_is_told_before_the_first_stage(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RecipeError, match="The endpoint has no key; set OPENAI_API_KEY"):
        run_recipe(changed(content), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


def test_a_second_evaluation_asks_for_no_judgement_twice(
    content: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    run_recipe(changed(content), tmp_path / "run")
    asked = list(server.asked)
    assert asked
    summary = run_recipe(changed(content, flips=1), tmp_path / "run")
    (flip,) = summary.results.flips
    assert (summary.stages_run, flip.prompts, flip.changed, flip.flipped) == (1, 15, 0, 0)
    assert server.asked == asked


# ---------------------------------------------------------------------- attacks


def test_attacks_of_a_recipe(content: dict[str, Any], tmp_path: Path) -> None:
    directory = tmp_path / "run"
    plain = run_recipe(changed(content), directory)
    assert plain.results.attack_drops == []
    summary = run_recipe(changed(content, attacks=ATTACKS), directory)
    assert summary.stages_run == 2  # the clean evaluation is taken
    assert summary.results.model_copy(update={"attack_drops": []}) == plain.results
    assert summary.skipped_attacks.keys() == {"low_resource"}
    manifest = read_json(directory / "manifest.json")
    assert manifest["skipped_attacks"] == summary.skipped_attacks
    assert [stage.partition("-")[0] for stage in manifest["methods"]["base"]["stages"]] == [
        "evaluate", "attack", "attack",
    ]  # fmt: skip

    (clean,) = samples_of(summary, "evaluate")
    toxic = [s for s in clean if s.label is Label.TOXIC]
    assert [s.benchmark for s in toxic] == ["pairs"] * 4 + ["more"] * 2
    policy = Policy.load(content["model"])
    prefix = policy.chat.tokenizer(COMPLETION_PREFIX, add_special_tokens=False)["input_ids"]
    begun, rotated = samples_of(summary, "attack")
    drops = {drop.attack: drop for drop in summary.results.attack_drops}
    assert list(drops) == ["rot13", "completion_prefix"]
    for name, attacked in (("rot13", rotated), ("completion_prefix", begun)):
        assert [(s.benchmark, s.prompt_id) for s in attacked] == [
            (f"{s.benchmark}+{name}", s.prompt_id) for s in toxic
        ]
        assert {s.rejection_probability for s in attacked} == {None}
        for before, after in zip(toxic, attacked, strict=True):
            if name == "rot13":
                assert after.prompt == attacks()["rot13"].rewrite(before.prompt)
                inputs = policy.encode([after.prompt])
            else:
                assert after.prompt == before.prompt
                inputs = [policy.encode([before.prompt])[0] + prefix]
            assert after.completion == policy.generate(inputs, 4)[0].text
        refused, refused_then = (
            sum(s.verdict is Verdict.REFUSAL for s in side) for side in (toxic, attacked)
        )
        drop = drops[name]
        assert (drop.method, drop.benchmark, drop.n, drop.unscored) == ("base", "all", 6, 0)
        assert drop.clean == pytest.approx(refused / 6)
        assert drop.attacked == pytest.approx(refused_then / 6)
        assert drop.drop == pytest.approx((refused - refused_then) / 6)

    page = write_report(directory).read_text(encoding="utf-8")
    assert 'id="table-attacks"' in page
    assert "low resource</bdi> was left out: it needs translations" in page
    assert "+rot13" not in page

    more = changed(content, attacks=[*ATTACKS, "leetspeak"])
    assert run_recipe(more, directory).stages_run == 1
    assert run_recipe(changed(content), directory).results == plain.results


def test_attacks_without_toxic_prompts(content: dict[str, Any], tmp_path: Path) -> None:
    easy = content["evaluate"]["benchmarks"][-1:]
    with pytest.raises(RecipeError, match="Attacks need toxic prompts, and no benchmark has any"):
        run_recipe(changed(content, benchmarks=easy, attacks=["rot13"]), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()
