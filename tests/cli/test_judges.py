"""`discern judges`."""

from __future__ import annotations

import json
import re
from http.server import ThreadingHTTPServer

import pytest
import transformers
from sklearn.metrics import cohen_kappa_score

from discernment.errors import DataError, RecipeError
from discernment.judges import JudgeSpec, KeywordJudge, judge_all
from discernment.judges.calibration import Calibration
from discernment.judges.labelled import STARTER, read_labelled
from discernment.judges.verdict import Verdict
from endpoint import ChatHandler, chat_completion, running
from tiny import GROUPED

REFUSAL, ANSWER = "I can't help with that.", "Boil the eggs for ten minutes."


def write_labels(path, models=("[red]a\x1b[0m", "b")):
    rows = [
        {"prompt": f"{m} {n}", "completion": f"{text} {n}", "label": label, "model": m, "category": "kind"}
        for m in models
        for n in range(10)
        for text, label in ((REFUSAL, "full_refusal"), (ANSWER, "full_compliance"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_train_then_calibrate(invoke, tmp_path) -> None:
    write_labels(tmp_path / "train.jsonl")
    write_labels(tmp_path / "other.jsonl", ["c", "d"])
    train = "judges train --kind classifier --labels train.jsonl --out new.safetensors"
    assert "Learning from 40 completions of train.jsonl" in invoke(*train.split())[1]
    options = "-j keywords -j classifier -j new.safetensors --labels other.jsonl -o out.json"
    _, output = invoke("judges", "calibrate", *options.split())
    assert "classifier against other.jsonl, by prompt type" in output
    found = [Calibration.model_validate(row) for row in json.loads((tmp_path / "out.json").read_text())]
    assert [c.judge for c in found] == ["keywords", "classifier", "classifier"]
    assert [c.overall.accuracy.value for c in found] == [1, 1, 1]
    assert [r.group for r in found[0].by_model] == ["c", "d"]


def test_untrusted_names_are_shown_as_they_are(invoke, tmp_path) -> None:
    write_labels(tmp_path / "labels.jsonl")
    _, output = invoke("judges", "calibrate", "--judge", "keywords", "--labels", "labels.jsonl")
    assert "[red]a" in output
    assert "\x1b[0m" not in output
    assert (tmp_path / "calibration.json").exists()


@pytest.fixture
def endpoint(monkeypatch):
    """A judge of its own behind HTTP, that says `refusal` of what begins like one; a number is a failure."""

    class Handler(ChatHandler):
        def reply(self, sent):
            made.asked += 1
            text = sent["messages"][1]["content"]
            nonce, reply = re.search(
                r"<<<reply ([0-9a-f]{16})>>>\n(.*)\n<<<end of reply", text, re.S
            ).groups()
            if made.status != 200:
                self.send(made.status, b'{"error": {"message": "Incorrect key."}}')
                return
            said = "refusal" if reply.startswith(REFUSAL) else "compliance"
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            answer = json.dumps({"code": nonce, "verdict": said})
            self.send(200, chat_completion({"content": answer}, usage=usage))

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.status = 0, 200
    made.spec = f"kind: llm, model: m, base_url: http://127.0.0.1:{made.server_port}/v1, retries: 0"
    with running(made):
        yield made


def read_calibration(path):
    return [Calibration.model_validate(row) for row in json.loads(path.read_text())]


def test_an_llm_judge_against_people(invoke, tmp_path, endpoint) -> None:
    write_labels(tmp_path / "labels.jsonl")
    judge = f"{{{endpoint.spec}, prices: [1, 2]}}"
    both = f"{{kind: ensemble, judges: [keywords, {{{endpoint.spec}}}]}}"
    command = ["judges", "calibrate", "--labels", "labels.jsonl", "--out", "out.json", "-j"]
    _, output = invoke(*command, judge, "-j", both)
    found = read_calibration(tmp_path / "out.json")
    assert [c.judge for c in found] == ["m", "majority of keywords, m"]
    assert [c.overall.accuracy.value for c in found] == [1, 1]
    assert endpoint.asked == found[0].overall.n == 40  # the ensemble's judge remembers
    assert (
        "m: 40 requests (0 judgements were known), 4000 input tokens, 400 output tokens, cost 0.0048"
        in output
    )
    _, output = invoke(*command, judge)
    assert endpoint.asked == 40
    assert "0 requests (40 judgements were known)" in output


def test_what_only_a_trained_judge_reads_is_refused_for_others(discern):
    command = [
        "judges",
        "calibrate",
        "--labels",
        "starter/verdicts",
        "-j",
        "keywords",
        "--also",
        "starter/verdicts",
    ]
    code, _, error = discern(*command)
    assert code == 2
    assert "--also is for a judge that is trained here, classifier or encoder; name one" in error


def test_an_endpoint_that_fails_says_why(discern, tmp_path, endpoint) -> None:
    write_labels(tmp_path / "labels.jsonl")
    endpoint.status = 401
    code, _, errors = discern("judges", "calibrate", "--labels", "labels.jsonl", "-j", f"{{{endpoint.spec}}}")
    assert code == 2
    assert "m left all of 40 completions of labels.jsonl unscored" in errors
    assert "AuthenticationError 401: Incorrect key." in errors
    assert not (tmp_path / "calibration.json").exists()


def test_a_judge_on_the_starter_verdicts(invoke, tmp_path) -> None:
    starter = read_labelled(STARTER)
    known = [e for e in starter if e.verdict is not Verdict.UNSCORED]
    _, output = invoke("judges", "calibrate", "--labels", STARTER, "-j", "keywords", "--out", "out.json")
    [found] = read_calibration(tmp_path / "out.json")
    assert (found.labels, found.overall.n) == (STARTER, len(known))
    assert found.unlabelled == len(starter) - len(known) > 0
    said = [j.verdict for j in judge_all(KeywordJudge(), [(e.prompt, e.completion) for e in known])]
    pairs = [(e.verdict, v) for e, v in zip(known, said, strict=True) if v is not Verdict.UNSCORED]
    assert found.overall.unscored == len(known) - len(pairs)
    people, judge = ([one is Verdict.REFUSAL for one in side] for side in zip(*pairs, strict=True))
    assert found.overall.kappa.value == pytest.approx(cohen_kappa_score(people, judge))
    assert f"Left out: {found.unlabelled} completions that people could not judge" in output


def test_hub_judges_against_people(invoke, tmp_path, tokenizer, model_folder) -> None:
    write_labels(tmp_path / "labels.jsonl", ["a"])
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), **GROUPED, id2label={0: "Non-refusal", 1: "Refusal"}, pad_token_id=0
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    judge = "{kind: hub, model: {model: ./judge, device: cpu}}"
    invoke("judges", "calibrate", "--labels", "labels.jsonl", "-j", judge)
    [found] = read_calibration(tmp_path / "calibration.json")
    expected = JudgeSpec.model_validate(
        {"kind": "hub", "model": {"model": str(tmp_path / "judge"), "device": "cpu"}}
    ).build()
    said = [
        j.verdict
        for j in judge_all(expected, [(e.prompt, e.completion) for e in read_labelled("labels.jsonl")])
    ]
    assert (found.judge, found.overall.n, found.overall.unscored) == ("./judge", 20, 0)
    assert found.overall.judge.value == said.count(Verdict.REFUSAL) / 20
    # A guard that babbles tells nothing, and that is said.
    folder = model_folder(max_position_embeddings=1024)
    guard = f"{{kind: wildguard, model: {{model: {folder}, device: cpu}}}}"
    with pytest.raises(
        DataError, match=r"all of 20 .* unscored \(most often: the guard's answer cannot be read\)"
    ):
        invoke("judges", "calibrate", "--labels", "labels.jsonl", "-j", guard)


def test_labels_are_not_replaced(invoke, tmp_path) -> None:
    labels = tmp_path / "labels.jsonl"
    write_labels(labels)
    before = labels.read_bytes()
    for command in (
        ("calibrate", "--labels", str(labels), "-j", "keywords", "--out", str(labels)),
        ("train", "--kind", "classifier", "--labels", str(labels), "--out", str(labels)),
    ):
        with pytest.raises(RecipeError, match="is read, and would be replaced"):
            invoke("judges", *command)
    assert labels.read_bytes() == before
    with pytest.raises(RecipeError, match=r"needs `--out FILE\.safetensors`"):
        invoke("judges", "train", "--kind", "classifier", "--labels", str(labels), "--out", str(tmp_path))
    with pytest.raises(RecipeError, match="it names no model"):
        invoke(
            "judges", "train", "--labels", str(labels), "--encoder", "openai:", "--out", str(tmp_path / "e")
        )
    with pytest.raises(RecipeError, match="`--encoder` is for"):
        invoke("judges", "train", "--kind", "classifier", "--encoder", "x", "--out", str(tmp_path / "c"))


def test_mistakes(invoke, tmp_path) -> None:
    write_labels(tmp_path / "labels.jsonl")
    with pytest.raises(RecipeError, match="needs `--out"):
        invoke("judges", "train", "--kind", "classifier", "--labels", "labels.jsonl")
    invoke(
        *["judges", "train", "--kind", "classifier", "--labels", "labels.jsonl", "--out", "new.safetensors"]
    )
    with pytest.raises(DataError, match="trained on 40 of these completions"):
        invoke("judges", "calibrate", "--judge", "new.safetensors", "--labels", "labels.jsonl")
    for judge, problem in {
        "nowhere": "no judge 'nowhere': it is neither a file or folder .* nor one of keyword",
        "hub": "--judge 'hub': the judge `hub` needs `model`",
        "{kind: hub, modle: m}": "`modle` is not a known option; did you mean `model`?",
        "{kind: hub": "is not YAML",
        "{kind: llm, model: m, api_key: x}": "a key is never written down",
    }.items():
        with pytest.raises(RecipeError, match=problem.replace("?", r"\?")):
            invoke("judges", "calibrate", "--judge", judge, "--labels", "labels.jsonl")
    with pytest.raises(DataError, match="DISCERNMENT_DATA"):
        invoke("judges", "calibrate")
