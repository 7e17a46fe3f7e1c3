"""Replies and rejection probabilities by vLLM are those of transformers; its server comes, goes, and may fail."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from discernment.errors import ModelError
from discernment.evaluation.evaluate import EvaluateOptions
from discernment.evaluation.sample import read_samples
from discernment.files import read_json_lines
from discernment.judges import JudgeSpec
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.vllm import VllmPolicy, _own_ends
from discernment.prompts import PromptSet
from discernment.runs.run import evaluate_policy
from endpoint import PolicyServer, running
from own_vllm import install, nothing_left
from tiny import make_benign, make_model, make_prompts

OPTIONS = EvaluateOptions(
    max_new_tokens=6, batch_size=4, openings=["Sorry", "I can't", "Sure"], engine="vllm"
)
BENCHMARKS = [make_prompts(3, name="pairs"), make_benign(3)]


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """Installs a command behind which a policy replies, and gives the pipe that it holds open."""
    with pytest.MonkeyPatch.context() as patch:
        servers = []

        def behind(policy, **environment):
            server = PolicyServer(Policy.load(policy.model_copy(update={"rule": None})))
            servers.append(running(server))
            servers[-1].__enter__()
            behind.server = server
            return install(tmp_path, patch, VLLM_BEHIND=server.url, **environment)

        yield behind
        for server in servers:
            server.__exit__(None, None, None)


def evaluated(policy, out, options=OPTIONS, benchmarks=BENCHMARKS, **how):
    """The cost, and what is kept of replies and rejection probabilities by prompt."""
    cost = evaluate_policy(PolicySpec.of(policy), benchmarks, options, JudgeSpec(), out, **how)
    replies = {row["key"]: row for _, row in read_json_lines(out / "completions.jsonl")}
    masses = {row["key"]: row["rejection_probability"] for _, row in read_json_lines(out / "rejection.jsonl")}
    return cost, {key: (r["completion"], r["finished"], r["tokens"]) for key, r in replies.items()}, masses


def transformers(policy, out, **changes):
    return evaluated(policy, out, OPTIONS.model_copy(update={"engine": "transformers", **changes}))


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in names]


def test_replies_and_rejection_probabilities_are_those_of_transformers(
    vllm, model_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy finds what is on this machine
    ours, theirs = folders(tmp_path, "ours", "theirs")
    policy = PolicySpec.of(str(model_folder())).with_rule(
        RuleSpec(name="prompted", options={"system": "Be kind."})
    )
    alive = vllm(policy)
    with nothing_left(alive):
        cost, replies, masses = evaluated(policy, ours, tensor_parallel=2)
    expected, same_replies, same_masses = transformers(policy, theirs)
    assert replies == same_replies
    assert len({text for text, _, _ in replies.values()}) > 3
    assert masses.keys() == same_masses.keys() != set()
    for key, mass in masses.items():
        assert mass == pytest.approx(same_masses[key], abs=1e-4, rel=1e-4)
    assert max(masses.values()) > 1e-4
    assert (cost.steps, cost.tokens) >= (expected.steps, expected.tokens)  # openings are read besides
    assert cost.notes["engine"] == {"name": "vllm", "tensor_parallel": 2}
    assert not (ours / "vllm.log").exists()


def test_the_server_is_told_all_that_the_replies_depend_on(vllm, model_folder, tmp_path):
    folder = model_folder()
    base = make_model("llama", 400)
    adapted = get_peft_model(base, LoraConfig(r=9, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    policy = PolicySpec.of(ModelSpec(model=str(folder), adapter=str(tmp_path / "adapter"), dtype="float32"))
    (out,) = folders(tmp_path, "out")
    vllm(policy)
    _, replies, _ = evaluated(policy, out)
    (theirs,) = folders(tmp_path, "theirs")
    assert replies == transformers(policy, theirs)[1]
    command, where, *given = json.loads((tmp_path / "arguments.json").read_text())
    assert (command, where) == ("serve", str(folder))
    flags = {"--enable-prefix-caching", "--enable-lora"}
    assert flags <= set(given)
    options = [text for text in given if text not in flags]
    told = dict(zip(options[::2], options[1::2], strict=True))
    longest = max(map(len, Policy.load(policy).encode([p.asked for b in BENCHMARKS for p in b])))
    assert int(told.pop("--port")) > 1024
    assert int(told.pop("--max-model-len")) > longest + OPTIONS.max_new_tokens
    assert told == {
        "--served-model-name": "base",
        "--host": "127.0.0.1",
        "--tokenizer": str(folder),
        "--dtype": "float32",
        "--tensor-parallel-size": "1",
        "--generation-config": "vllm",
        "--lora-modules": f"policy={tmp_path / 'adapter'}",
        "--max-lora-rank": "16",
    }
    bodies = vllm.server.bodies
    asked = [body for body in bodies if "echo" not in body]
    assert {body["model"] for body in bodies} == {"policy"}
    assert len(asked) == sum(map(len, BENCHMARKS))
    assert all(body["return_token_ids"] and body["temperature"] == 0 for body in asked)
    ends = Policy.load(policy).chat
    assert all(
        {ends.end_of_turn, ends.tokenizer.eos_token_id} <= set(body["stop_token_ids"]) for body in asked
    )


def test_the_ends_are_those_of_the_policy_where_there_is_no_generation_configuration(model_folder):
    folder = model_folder()
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 7]}))
    spec = ModelSpec(model=str(folder))
    assert set(_own_ends(spec)) == set(Policy.load(spec)._own_ends()) == {2, 7}


def test_a_prompt_that_does_not_fit_is_handled_as_by_transformers(vllm, model_folder, tmp_path):
    policy = PolicySpec.of(str(model_folder(max_position_embeddings=42)))
    vllm(policy)
    asked = [
        *make_prompts(2),
        make_prompts(1).prompts[0].model_copy(update={"id": "long", "text": "How " * 40}),
    ]
    longer = [PromptSet(asked, make_prompts(1).provenance)]
    lengths = [len(s) + 5 for s in Policy.load(policy).encode([p.asked for p in asked])]
    assert max(lengths[:-1]) <= 40 < lengths[-1] - 2
    found = {}
    for engine in ("vllm", "transformers"):
        options = OPTIONS.model_copy(update={"too_long": "unscored", "engine": engine})
        (out,) = folders(tmp_path, engine)
        found[engine] = evaluated(policy, out, options, benchmarks=longer)[1]
        assert read_samples(out / "samples.jsonl")[-1].unscored_reason.startswith("prompt and reply need")
    assert found["vllm"] == found["transformers"]
    assert len(found["vllm"]) == len(asked) - 1


def test_a_server_that_ends_while_it_is_asked_ends_the_run_and_the_rest_is_asked_for_later(
    vllm, model_folder, tmp_path, monkeypatch
):
    policy = PolicySpec.of(str(model_folder()))
    out, theirs = folders(tmp_path, "out", "theirs")
    alive = vllm(policy, VLLM_MOOD="dies")
    options = OPTIONS.model_copy(update={"batch_size": 1})
    with nothing_left(alive), pytest.raises(ModelError) as caught:
        evaluated(policy, out, options)
    assert "vLLM ended before all was asked (exit code 3)" in str(caught.value)
    assert "the device has fallen off the bus" in str(caught.value)
    assert str(out / "vllm.log") in str(caught.value)
    assert len((out / "completions.jsonl").read_text().splitlines()) == 2
    monkeypatch.delenv("VLLM_MOOD")
    with nothing_left(alive):
        cost, replies, _ = evaluated(policy, out)
    assert replies == transformers(policy, theirs)[1]
    assert (cost.notes["endpoint"]["kept"], cost.notes["endpoint"]["requests"]) == (2, len(replies) - 2)


def test_an_adapter_that_is_none_of_lora_is_refused_in_words(model_folder, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    folder, (adapter,) = model_folder(), folders(tmp_path, "adapter")
    (adapter / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    policy = VllmPolicy(PolicySpec.of(ModelSpec(model=str(folder), adapter=str(adapter))), "tiny")
    with pytest.raises(ModelError, match=r"takes adapters of LoRA up to rank 512.*`engine: transformers`"):  # noqa: SIM117
        with policy.serving(20, tmp_path / "vllm.log"):
            pass


@pytest.mark.slow
def test_with_vllm_itself(model_folder, tmp_path):
    """Where it is installed and there is a GPU; its kernels want heads of 32 and more."""
    pytest.importorskip("vllm", reason="the extra `vllm` is not installed")
    if not torch.cuda.is_available():
        pytest.skip("vLLM needs a GPU")
    folder = model_folder(num_attention_heads=1, num_key_value_heads=1)
    policy = PolicySpec.of(ModelSpec(model=str(folder), dtype="float32"))
    ours, theirs = folders(tmp_path, "ours", "theirs")
    _, replies, masses = evaluated(policy, ours)
    _, expected, same = transformers(policy, theirs)
    assert replies == expected
    assert all(mass == pytest.approx(same[key], rel=1e-3, abs=1e-5) for key, mass in masses.items())
