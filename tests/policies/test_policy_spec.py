"""Policies as they are named and kept."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from discernment.errors import DataError, ModelError, RecipeError
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rejection import rejection_probability

PROMPTS = ["How do I kill a Python process?", "How do I bake bread?"]


@pytest.fixture
def ablated(model_folder, tmp_path):
    """A policy whose parts lie in three places."""
    torch.manual_seed(1)
    save_file({"direction": torch.randn(32)}, tmp_path / "found.safetensors")
    rule = RuleSpec(name="ablated", options={"strength": 2.0}, tensors=str(tmp_path / "found.safetensors"))
    return PolicySpec(model=ModelSpec(model=str(model_folder()), system="Be kind."), rule=rule)


def says(spec):
    policy = Policy.load(spec)
    return rejection_probability(policy, PROMPTS), policy.generate(policy.encode(PROMPTS), 4)


def test_a_saved_policy_can_be_moved(ablated, tmp_path):
    expected = says(ablated)
    assert expected[0] != says(ablated.model)[0]
    saved = ablated.save(tmp_path / "deep/saved")
    assert says(saved) == expected
    assert saved.save(tmp_path / "deep/saved") == saved
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "deep/saved", tmp_path / "other/place")
    shutil.rmtree(ablated.model.model)
    (tmp_path / "found.safetensors").unlink()
    found = PolicySpec.of(str(tmp_path / "other/place"))
    assert says(found) == says(str(tmp_path / "other/place")) == expected
    assert found.model.system == "Be kind."
    content = json.loads((tmp_path / "other/place/policy.json").read_text())
    assert (content["model"]["model"], content["rule"]["tensors"]) == ("./model", "./rule.safetensors")


def test_what_lies_beside_a_stage_moves_with_it(ablated, tmp_path):
    stages = tmp_path / "run/stages"
    shutil.copytree(ablated.model.model, stages / "align-1/model")
    ablated.with_model(model=str(stages / "align-1/model")).write(stages / "direction-2")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    found = PolicySpec.read(tmp_path / "moved/stages/direction-2")
    assert found.model.model == str(tmp_path / "moved/stages/align-1/model")
    assert found.rule.tensors == str(tmp_path / "found.safetensors")


def test_options_of_the_model_are_said_over_those_of_the_folder(ablated, tmp_path):
    ablated.save(tmp_path / "saved")
    named = ModelSpec(model=str(tmp_path / "saved"), dtype="bfloat16")
    found = PolicySpec.of(named)
    assert (found.model.dtype, found.model.system, found.rule.name) == ("bfloat16", "Be kind.", "ablated")


def test_an_adapter_that_is_named_goes_on_top_of_those_of_the_folder(ablated, tmp_path):
    ablated.model_copy(update={"adapters": ("org/first",)}).write(tmp_path / "saved")
    found = PolicySpec.of(ModelSpec(model=str(tmp_path / "saved"), adapter="org/second"))
    assert (found.model.adapter, found.adapters) == (None, ("org/first", "org/second"))


def test_a_bare_model_is_a_policy():
    assert (
        PolicySpec.of("org/name")
        == PolicySpec.of(ModelSpec(model="org/name"))
        == PolicySpec(model="org/name")
    )
    with_adapter = PolicySpec.of(ModelSpec(model="org/name", adapter="org/adapter"))
    assert (with_adapter.model.adapter, with_adapter.adapters) == (None, ("org/adapter",))


def test_the_fingerprint_changes_with_every_part(ablated, tmp_path):
    rule = ablated.rule
    others = [
        ablated.model_copy(update={"rule": None}),
        ablated.model_copy(update={"rule": rule.model_copy(update={"options": {"strength": 1.0}})}),
        ablated.with_model(system="Be brief."),
        ablated.model_copy(update={"adapters": ("org/adapter",)}),
    ]
    before = ablated.fingerprint()
    found = [before, *(other.fingerprint() for other in others)]
    save_file({"direction": torch.ones(32)}, tmp_path / "found.safetensors")
    found.append(ablated.fingerprint())
    assert len(set(found)) == 6
    assert ablated.save(tmp_path / "saved").fingerprint() == ablated.fingerprint()


def test_what_is_wrong_is_said(ablated, tmp_path):
    (tmp_path / "policy.json").write_text('{"model": {"modle": "x"}}')
    with pytest.raises(DataError, match=r"policy\.json is no policy"):
        PolicySpec.of(str(tmp_path))
    (tmp_path / "found.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"The tensors .* of the rule 'ablated' cannot be read"):
        Policy.load(ablated)
    with pytest.raises(RecipeError, match="one rule at most, and this one acts by 'ablated'"):
        ablated.with_rule(RuleSpec(name="prompted"))
