"""Which engine a policy replies by: what is asked for, what is here, and what vLLM can do."""

import logging

import pytest

from discernment.errors import RecipeError
from discernment.evaluation.evaluate import EvaluateOptions, JudgedOptions
from discernment.policies import engine
from discernment.policies.engine import check_engine, choose_engine
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from own_vllm import install

PLAIN = PolicySpec.of("somewhere")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The command is there, and what it is made for."""
    install(tmp_path, monkeypatch)
    monkeypatch.setattr(engine, "ACCELERATORS", ("cpu", "cuda"))


@pytest.fixture(autouse=True)
def _nothing_was_said():
    engine._say.cache_clear()


@pytest.mark.usefixtures("installed")
def test_auto_is_vllm_where_it_is_there_and_can(caplog):
    caplog.set_level(logging.INFO, "discernment")
    assert [choose_engine("auto", PLAIN) for _ in range(3)] == ["vllm"] * 3
    assert [record.getMessage() for record in caplog.records] == ["`engine: auto`: vLLM generates."]
    assert choose_engine("vllm", PLAIN) == "vllm"
    assert choose_engine("transformers", PLAIN) == "transformers"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (PLAIN.with_rule(RuleSpec(name="self_cd")), "vLLM has no rule 'self_cd'"),
        (
            PLAIN.with_model(quantization="4bit"),
            "vLLM would quantise otherwise than `quantization: 4bit` does",
        ),
        (PLAIN.model_copy(update={"adapters": ("a", "b")}), "vLLM takes one adapter, and the policy has 2"),
    ],
)
def test_what_vllm_cannot_do_transformers_does_and_it_is_said_why(policy, why, caplog):
    caplog.set_level(logging.INFO, "discernment")
    for asked in ("auto", "vllm"):
        assert choose_engine(asked, policy) == "transformers"
        assert caplog.records[-1].getMessage() == f"`engine: {asked}`: transformers generates, because {why}."


@pytest.mark.usefixtures("installed")
def test_a_system_message_is_no_rule_that_it_lacks():
    assert choose_engine("vllm", PLAIN.with_rule(RuleSpec(name="prompted"))) == "vllm"
    assert choose_engine("vllm", PolicySpec.of("openai:m@http://localhost:1/v1")) == "transformers"


@pytest.mark.usefixtures("installed")
def test_several_processes_share_the_replies_out_themselves(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_engine("auto", PLAIN) == "transformers"


def test_without_a_device_for_it_auto_is_transformers(tmp_path, monkeypatch, caplog):
    install(tmp_path, monkeypatch)
    caplog.set_level(logging.INFO, "discernment")
    assert choose_engine("auto", PLAIN.with_model(device="cpu")) == "transformers"
    assert "because the device is 'cpu'" in caplog.text


def test_where_it_is_missing_auto_does_without_and_vllm_is_a_mistake(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_engine("auto", PLAIN) == "transformers"
    for ask in (lambda: choose_engine("vllm", PLAIN), lambda: check_engine("vllm")):
        with pytest.raises(RecipeError, match=r"needs the command `vllm`.*pip install 'discernment\[vllm\]'"):
            ask()
    check_engine("auto")


@pytest.mark.usefixtures("installed")
def test_stages_keep_their_names_where_transformers_generates():
    assert "engine" not in EvaluateOptions().model_dump()
    assert "tensor_parallel" not in JudgedOptions().model_dump()
    asked = JudgedOptions(engine="auto", tensor_parallel=4)
    assert asked.options_for(PLAIN).model_dump()["engine"] == "vllm"
    ruled = asked.options_for(PLAIN.with_rule(RuleSpec(name="self_cd")))
    assert ruled == EvaluateOptions()
    assert ruled.model_dump() == EvaluateOptions().model_dump()
