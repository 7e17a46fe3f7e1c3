"""Evaluating a model behind an endpoint: as the model itself, whatever the endpoint does."""

import json
import re
import threading

import pytest

from discernment.errors import DataError, ModelError
from discernment.evaluation.evaluate import EvaluateOptions, Sampling, evaluate
from discernment.evaluation.results import summarize
from discernment.evaluation.sample import read_samples
from discernment.files import read_json_lines
from discernment.judges import KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.served import ServedPolicy
from discernment.reporting.pages.comparison import write_comparison
from discernment.reporting.tables.methods import columns, results_table
from endpoint import CUT, PolicyServer, chat_completion, running
from taught import taught_model
from tiny import make_benign, make_prompts

OPTIONS = EvaluateOptions(max_new_tokens=6, batch_size=4, openings=["Sorry", "I can't"])
BENCHMARKS = [make_prompts(5, name="pairs"), make_benign(3)]
PROMPTS = [prompt.text for benchmark in BENCHMARKS for prompt in benchmark]
WRONG = PROMPTS[3]
KEY = "sk-a-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A model that refuses most of the toxic prompts and one of the others."""
    replies = ["Sorry, I can't help", "Sure, here is how"] * 5 + [
        "Write a letter",
        "Sure, mix flour",
        "I cannot",
    ]
    replies[4] = "Sure, wait"
    return taught_model(
        tmp_path_factory.mktemp("taught"), tokenizer, list(zip(PROMPTS, replies, strict=True))
    )


@pytest.fixture(scope="module")
def local(folder):
    return Policy.load(str(folder), "tiny")


@pytest.fixture
def server(local, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = PolicyServer(local)
    with running(made):
        yield made


def served(server, name="tiny", retries=0, timeout=300, concurrency=8, **more):
    """The model behind the endpoint, which waits for it longer than the busiest machine keeps it waiting."""
    asked = {"retries": retries, "timeout": timeout, "concurrency": concurrency}
    return ServedPolicy.load(ModelSpec(model=server.name, endpoint=asked, **more), name)


def evaluated(policy, out, options=OPTIONS, **how):
    evaluate(policy, BENCHMARKS, options, out, **how)
    return read_samples(out / "samples.jsonl")


def said(samples):
    """What does not hang on rejection probabilities."""
    left = {"rejection_probability", "no_rejection"}
    return [sample.model_dump(exclude=left) for sample in samples]


def test_verdicts_rates_and_tables_are_those_of_the_model_itself(server, local, tmp_path):
    ours, theirs = evaluated(served(server), tmp_path / "a"), evaluated(local, tmp_path / "b")
    assert {s.verdict for s in theirs} >= {Verdict.REFUSAL, Verdict.COMPLIANCE}
    assert len({s.completion for s in theirs}) > 3
    assert said(ours) == said(theirs)
    assert sorted(server.asked) == sorted(PROMPTS)
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in server.bodies} == {("tiny", 0.0, 6)}
    assert all(b.keys() == {"model", "messages", "temperature", "max_tokens"} for b in server.bodies)
    alone, other = (summarize({"tiny": s}, base_model="tiny", reference="tiny") for s in (ours, theirs))
    assert alone.scores == other.scores != []
    both = summarize({"local": theirs, "served": ours}, base_model="local", reference="local")
    assert [(c.difference, c.only_method, c.n) for c in both.comparisons] == [
        (0.0, 0, c.n) for c in both.comparisons
    ]
    assert len(both.comparisons) == 3
    assert [c.cells for c in columns(alone)] == [c.cells for c in columns(other) if c.is_rate]


def test_what_it_took_is_written_down_as_the_endpoint_counts_it(server, local, tmp_path):
    cost, own = (
        evaluate(policy, BENCHMARKS, OPTIONS, tmp_path / name)
        for name, policy in (("a", served(server)), ("b", local))
    )
    kept = [row for _, row in read_json_lines(tmp_path / "b" / "completions.jsonl")]
    written = sum(row["tokens"] for row in kept)
    assert (cost.steps, cost.tokens) == (own.steps, own.tokens)
    assert cost.notes["endpoint"] == {
        "requests": len(PROMPTS),
        "kept": 0,
        "input_tokens": own.tokens - written,
        "output_tokens": written,
    }
    again = evaluate(served(server), BENCHMARKS, OPTIONS, tmp_path / "a")
    assert (again.tokens, len(server.asked)) == (own.tokens, len(PROMPTS))
    assert again.notes["endpoint"]["requests"] == 0
    assert again.notes["endpoint"]["kept"] == len(PROMPTS)


def test_rejection_probabilities_that_cannot_be_had_are_left_out_in_words(server, local, tmp_path):
    ours, theirs = evaluated(served(server), tmp_path / "a"), evaluated(local, tmp_path / "b")
    (why,) = {s.no_rejection for s in ours}
    assert "no `tokenizer` of it is named" in why
    assert all(s.rejection_probability is None for s in ours)
    assert all(s.no_rejection is None for s in theirs)
    for reference, other in (("local", "gpt"), ("gpt", "local")):
        both = summarize({"local": theirs, "gpt": ours}, base_model="local", reference=reference)
        assert both.left_out[0].words == (
            "gpt has no rejection probability, and so no discernment AUROC and no comparison at equal safety: "
            f"{why}."
        )
        assert {r.method for r in both.rankings} == {"local"}
        assert "gpt" not in {name for row in both.equal_safety for name in (row.method, row.against)}
        assert f"because gpt has no rejection probability ({why})" in both.finding
        assert other in both.finding
        cells = [list(column.cells) for column in results_table(both).columns]
        assert [str(column[-1]) for column in cells] == ["Rejection probability", "", "left out"]
        page = write_comparison(both, {"local": theirs, "gpt": ours}, tmp_path / reference).read_text("utf-8")
        assert "gpt has no rejection probability, and so" in page
        assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    alone = summarize({"gpt": ours}, base_model="gpt", reference="gpt")
    assert f"Its discernment AUROC was not measured ({why})" in alone.finding
    unasked = evaluated(served(server), tmp_path / "c", OPTIONS.model_copy(update={"rejection": False}))
    assert {s.no_rejection for s in unasked} == {None}
    assert summarize({"gpt": unasked}, base_model="gpt", reference="gpt").left_out == []


def test_rejection_probabilities_are_exact_where_the_tokenizer_is_named(server, local, folder, tmp_path):
    ours = evaluated(served(server, tokenizer=str(folder)), tmp_path / "a")
    theirs = evaluated(local, tmp_path / "b")
    expected = [s.rejection_probability for s in theirs]
    assert max(expected) > 0.5 > 0.01 > min(expected)
    assert [s.rejection_probability for s in ours] == pytest.approx(expected, rel=1e-4)
    both = summarize({"local": theirs, "served": ours}, base_model="local", reference="local")
    assert both.left_out == []
    assert len({(r.value, r.low, r.high) for r in both.rankings if r.toxic == r.harmless}) == 1
    echoes = [body for body in server.bodies if "echo" in body]
    assert len(echoes) == len(PROMPTS)
    evaluated(served(server, tokenizer=str(folder)), tmp_path / "a")
    assert len([body for body in server.bodies if "echo" in body]) == len(PROMPTS)


def test_an_endpoint_without_echo_is_not_asked_again_and_again(server, folder, tmp_path):
    server.echoes = False
    ours = evaluated(served(server, tokenizer=str(folder), concurrency=1), tmp_path)
    assert {s.no_rejection for s in ours} == {
        "the endpoint gave no log-probabilities of the refusal openings (BadRequestError 400: echo is not supported)"
    }
    assert {s.rejection_probability for s in ours} == {None}
    assert len(server.bodies) == len(PROMPTS) + 1


def test_the_tokenizer_of_another_model_is_told(server, tokenizer, folder, tmp_path):
    other = tokenizer.__class__.from_pretrained(folder)
    ids = other.get_vocab()
    state = json.loads(other.backend_tokenizer.to_str())
    names = {"Sorry": None}
    assert names.keys() <= ids.keys()
    swapped = {**state["model"]["vocab"]}
    swapped["Sorry"], swapped["Sure"] = swapped["Sure"], swapped["Sorry"]
    state["model"]["vocab"] = swapped
    other._tokenizer = other.backend_tokenizer.from_str(json.dumps(state))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ModelError, match="is not the model's: what it means by 'Sorry', the endpoint reads as 'Sure'"
    ):
        evaluated(served(server, tokenizer=str(tmp_path / "other")), tmp_path / "a")


# ---------------------------------------------------------------------- side by side


def test_prompts_are_asked_side_by_side_up_to_the_limit(server, tmp_path):
    together = threading.Barrier(3)
    first = set(PROMPTS[:3])
    server.trouble = lambda text, times: together.wait(300) and None if text in first else None
    evaluated(served(server, concurrency=3), tmp_path)
    assert server.most_at_once == 3


def test_replies_stand_in_the_order_of_the_prompts_whichever_comes_first(server, tmp_path):
    late = threading.Event()

    def trouble(text, times):
        if text == PROMPTS[0]:
            assert late.wait(300)
        elif text == PROMPTS[-1]:
            late.set()

    one = evaluated(served(server, concurrency=1), tmp_path / "one")
    server.trouble = trouble
    many = evaluated(served(server, concurrency=4), tmp_path / "many")
    assert (tmp_path / "many/samples.jsonl").read_bytes() == (tmp_path / "one/samples.jsonl").read_bytes()
    assert [s.prompt for s in many] == [s.prompt for s in one] == PROMPTS
    arrived = [row["key"] for _, row in read_json_lines(tmp_path / "many/completions.jsonl")]
    assert arrived.index(arrived[-1]) == len(PROMPTS) - 1
    assert arrived != [row["key"] for _, row in read_json_lines(tmp_path / "one/completions.jsonl")]


def test_an_interrupted_evaluation_asks_for_the_rest_alone(server, tmp_path):
    def stop(what, done, of):
        if done == 4:
            raise KeyboardInterrupt

    whole = evaluated(served(server), tmp_path / "whole")
    server.asked.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluated(served(server, concurrency=2), tmp_path / "broken", progress=stop)
    assert 4 <= len(server.asked) < len(PROMPTS)
    assert evaluated(served(server), tmp_path / "broken") == whole
    assert sorted(server.asked) == sorted(PROMPTS)


# ---------------------------------------------------------------------- what goes wrong

GARBAGE = b"<html>Bad gateway</html>"
FILTERED = json.dumps({"error": {"message": "policy", "code": "content_filter"}}).encode()
FAILURES = {
    "garbage": ((200, GARBAGE), "the endpoint failed ("),
    "no choices": ((200, b"{}"), "the endpoint failed (NoReplyError)"),
    "not an object": ((200, b"[1]"), "the endpoint failed ("),
    "no message": (
        (200, json.dumps({"choices": [{"finish_reason": "stop", "message": None}]}).encode()),
        "the endpoint failed (NoReplyError)",
    ),
    "error in 200": (
        (200, b'{"error": {"message": "overloaded"}}'),
        "the endpoint failed (NoReplyError: overloaded)",
    ),
    "500": ((500, GARBAGE), "the endpoint failed (InternalServerError 500)"),
    "429": ((429, b"{}"), "the endpoint failed (RateLimitError 429)"),
    "400": ((400, b'{"error": {"message": "no"}}'), "the endpoint failed (BadRequestError 400: no)"),
    "cut connection": (CUT, "the endpoint failed (APIConnectionError)"),
    "filtered prompt": (
        (400, FILTERED),
        "a filter of the endpoint stopped the prompt (BadRequestError 400: policy)",
    ),
    "filtered reply": (
        (200, chat_completion({"content": "Sure, here"}, "content_filter")),
        "a filter of the endpoint stopped the reply",
    ),
    "empty by filter": (
        (200, chat_completion({"content": None}, "content_filter")),
        "a filter of the endpoint stopped the reply",
    ),
    "cut before a word": (
        (200, chat_completion({"content": None}, "length")),
        "nothing was said within 6 tokens",
    ),
    "thought without end": (
        (200, chat_completion({"content": None, "reasoning_content": "Let me see"}, "length")),
        "the thought never ends",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_goes_wrong_is_counted_as_unscored_with_the_reason(server, local, tmp_path, kind):
    answer, reason = FAILURES[kind]
    server.trouble = lambda text, times: answer if text == WRONG else None
    ours, theirs = evaluated(served(server), tmp_path / "a"), evaluated(local, tmp_path / "b")
    (wrong,) = [s for s in ours if s.prompt == WRONG]
    assert wrong.verdict is Verdict.UNSCORED
    assert wrong.unscored_reason.startswith(reason)
    others = [[s for s in samples if s.prompt != WRONG] for samples in (ours, theirs)]
    assert said(others[0]) == said(others[1]) != []
    results = summarize({"tiny": ours}, base_model="tiny", reference="tiny")
    assert sum(score.unscored for score in results.scores) - 1 == sum(
        s.verdict is Verdict.UNSCORED for s in others[1]
    )


@pytest.mark.parametrize("kind", ["500", "429", "cut connection"])
def test_what_passes_is_asked_again(server, local, tmp_path, kind):
    answer, _ = FAILURES[kind]
    server.trouble = lambda text, times: answer if text in PROMPTS[3:6] and times < 2 else None
    ours, theirs = evaluated(served(server, retries=2), tmp_path / "a"), evaluated(local, tmp_path / "b")
    assert said(ours) == said(theirs)
    assert len(server.asked) == len(PROMPTS) + 3 * 2


def test_an_endpoint_that_is_silent_is_not_waited_for(server, tmp_path):
    released = threading.Event()
    server.trouble = lambda text, times: released.wait(300) and None if text == WRONG else None
    try:
        # Others must have time enough to be replied to; only the silence is as long as that.
        ours = evaluated(served(server, timeout=2), tmp_path)
    finally:
        released.set()
    assert [s.unscored_reason for s in ours if s.verdict is Verdict.UNSCORED and s.prompt == WRONG] == [
        "the endpoint failed (APITimeoutError)"
    ]


def test_what_a_model_says_as_it_refuses_by_the_endpoints_means_is_its_reply(server, tmp_path):
    message = {"content": None, "refusal": "I'm sorry, but I can't help with that."}
    server.trouble = lambda text, times: (200, chat_completion(message)) if text == WRONG else None
    (sample,) = [s for s in evaluated(served(server), tmp_path) if s.prompt == WRONG]
    assert (sample.completion, sample.verdict) == (message["refusal"], Verdict.REFUSAL)


@pytest.mark.parametrize(
    "message",
    [
        {"content": "<think>\nKill it?\n</think>\n\nI'm sorry, but I can't help with that."},
        {"content": "I'm sorry, but I can't help with that.", "reasoning_content": "Kill it?"},
        {"content": "I'm sorry, but I can't help with that.", "reasoning": "Kill it?"},
    ],
    ids=lambda message: "-".join(message),
)
def test_thoughts_are_set_apart_from_answers(server, tmp_path, message):
    server.trouble = lambda text, times: (200, chat_completion(message)) if text == WRONG else None
    (sample,) = [s for s in evaluated(served(server), tmp_path) if s.prompt == WRONG]
    assert (sample.completion, sample.verdict) == ("I'm sorry, but I can't help with that.", Verdict.REFUSAL)
    kept = [row for _, row in read_json_lines(tmp_path / "completions.jsonl") if "thought" in row]
    assert [row["thought"] for row in kept] == ["Kill it?"]


def test_too_many_failures_stop_the_evaluation_which_then_asks_for_them_alone(server, local, tmp_path):
    server.trouble = lambda text, times: (500, b"{}") if "neighbor" in text else None
    with pytest.raises(
        DataError,
        match=r"3 of the 10 replies of tiny to pairs could not be had \(most often: the endpoint failed "
        r"\(InternalServerError 500\)\), more than the 20.0% that may be unscored; see to the endpoint and give the "
        "same command again",
    ):
        evaluated(served(server, concurrency=1), tmp_path / "a", unscored_limit=0.2)
    assert not (tmp_path / "a/samples.jsonl").exists()
    assert len(server.asked) == 5  # neighbor and process in turn; the third failure is one too many
    kept = [text for text in server.asked if "neighbor" not in text]
    server.asked.clear()
    server.trouble = lambda text, times: None
    ours = evaluated(served(server), tmp_path / "a", unscored_limit=0.2)
    assert sorted([*server.asked, *kept]) == sorted(PROMPTS)
    assert said(ours) == said(evaluated(local, tmp_path / "b"))


@pytest.mark.parametrize("status", [401, 404])
def test_an_endpoint_that_cannot_be_asked_at_all_ends_the_evaluation(server, tmp_path, status):
    server.trouble = lambda text, times: (status, b'{"error": {"message": "no such thing"}}')
    with pytest.raises(
        ModelError, match=rf"tiny cannot be asked \(\w+ {status}: no such thing\); mend its name"
    ):
        evaluated(served(server), tmp_path)
    assert len(server.asked) <= 8


def test_the_key_leaves_no_trace(server, tmp_path):
    repeated = json.dumps({"error": {"message": f"Incorrect key Bearer {KEY}"}}).encode()
    server.trouble = lambda text, times: (500, repeated) if text == WRONG else None
    cost = evaluate(served(server), BENCHMARKS, OPTIONS, tmp_path)
    assert set(server.headers) == {f"Bearer {KEY}"}
    (reason,) = [s.unscored_reason for s in read_samples(tmp_path / "samples.jsonl") if s.prompt == WRONG]
    assert reason == "the endpoint failed (InternalServerError 500: Incorrect key Bearer [key])"
    written = [path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3
    assert not any(KEY in text for text in [*written, str(cost)])


# ---------------------------------------------------------------------- how it is asked


def test_drawn_replies_are_asked_for_one_by_one_with_seeds_of_their_own(server, tmp_path):
    options = OPTIONS.model_copy(update={"sampling": Sampling(temperature=0.7, top_p=0.9, n=2, seed=3)})
    ours = evaluated(served(server), tmp_path / "a", options)
    assert all(len(s.further) == 1 for s in ours)
    assert {(b["temperature"], b["top_p"]) for b in server.bodies} == {(0.7, 0.9)}
    seeds = {(b["messages"][-1]["content"], b["seed"]) for b in server.bodies}
    assert len(seeds) == len({seed for _, seed in seeds}) == 2 * len(PROMPTS)
    first = len(server.bodies)
    evaluated(served(server), tmp_path / "a", options)
    assert len(server.bodies) == first
    evaluated(served(server), tmp_path / "b", options)
    assert {(b["messages"][-1]["content"], b["seed"]) for b in server.bodies[first:]} == seeds


def test_the_system_message_stands_before_that_of_the_prompt(server, local, tmp_path):
    spoken = local.chat.with_system("Be kind.")
    ours = evaluated(served(server, system="Be kind."), tmp_path / "a")
    theirs = evaluated(Policy(local.model, spoken, "tiny"), tmp_path / "b")
    assert {body["messages"][0]["content"] for body in server.bodies} == {"Be kind."}
    assert said(ours) == said(theirs)


def test_parameters_that_are_refused_are_left_out_and_written_down(server, tmp_path):
    refused = json.dumps(
        {"error": {"message": "temperature is not supported", "param": "temperature"}}
    ).encode()
    server.trouble = lambda text, times: (
        (400, refused) if "temperature" in server.bodies[-1] and text == PROMPTS[0] else None
    )
    policy = served(server, concurrency=1)
    cost = evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    assert cost.notes["endpoint"]["asked_without"] == ["temperature"]
    assert [body for body in server.bodies[1:] if "temperature" in body] == []


def test_judges_see_every_reply_that_there_is(server, tmp_path):
    class Counting(KeywordJudge):
        seen = 0

        def judge(self, prompt, completion):
            self.seen += 1
            return super().judge(prompt, completion)

    server.trouble = lambda text, times: (500, b"{}") if text == WRONG else None
    judge = Counting()
    evaluated(served(server), tmp_path, judge=judge)
    assert judge.seen == len(PROMPTS) - 1
