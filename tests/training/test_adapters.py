"""An adapter that a stage keeps is what plain `peft` reads, wherever it lies."""

import shutil

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from discernment.errors import ModelError
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.supervised import AlignOptions, align
from tiny import make_prompts

IDS = torch.tensor([[5, 6, 7, 8, 9]])
SOME = {"batch_size": 8, "learning_rate": 1e-2}


def train(stage, start, out, keep, layer=2):
    lora = {"rank": 4, "keep": keep}
    if stage == "refine":
        refine(start, make_prompts(8), RefineOptions(layer=layer, steps=2, lora=lora, **SOME), out)
    else:
        align(start, make_prompts(8), AlignOptions(lora=lora, **SOME), out)
    return PolicySpec.read(out)


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def by_peft(base, *adapters):
    model = AutoModelForCausalLM.from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return logits(model.eval())


@pytest.mark.parametrize("stage", ["refine", "align"])
@pytest.mark.thinned(4)
def test_a_kept_adapter_gives_the_merged_models_logits_anywhere(stage, family, model_folder, tmp_path):
    base = model_folder(family)
    left = train(stage, str(base), tmp_path / "out", "both")
    assert (left.model.model, left.adapters) == (str(tmp_path / "out/model"), ())
    merged = logits(Policy.load(left).model)
    shutil.move(tmp_path / "out/adapter", tmp_path / "elsewhere")
    torch.testing.assert_close(by_peft(base, tmp_path / "elsewhere"), merged, atol=2e-5, rtol=1e-4)
    plain = logits(Policy.load(str(base)).model)
    assert float((merged - plain).abs().max()) > 1e-3
    named = ModelSpec(model=str(base), adapter=str(tmp_path / "elsewhere"))
    torch.testing.assert_close(logits(Policy.load(named).model), merged, atol=2e-5, rtol=1e-4)


def test_an_adapter_of_many_modules_names_those_of_its_layers_alone(model_folder, tmp_path, recwarn):
    base = model_folder("llama")
    depth = len(AutoModelForCausalLM.from_pretrained(base).model.layers)
    train("refine", str(base), tmp_path / "out", "adapter", layer=3)
    targets = PeftConfig.from_pretrained(tmp_path / "out/adapter").target_modules
    # Seven linear modules a layer; from twenty on PEFT shortens their names.
    assert len(targets) == 21
    assert {name.split(".")[2] for name in targets} == {"0", "1", "2"}
    assert depth > 3
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out/adapter")
    adapted = {name.split(".")[4] for name, _ in loaded.named_parameters() if "lora_A" in name}
    assert adapted == {"0", "1", "2"}
    assert not [str(w.message) for w in recwarn if "missing adapter keys" in str(w.message)]


@pytest.mark.parametrize(
    ("keep", "found"),
    [("adapter", ["adapter"]), ("merged", ["model"]), ("both", ["adapter", "model"])],
)
def test_a_stage_leaves_what_is_to_be_kept(keep, found, model_folder, tmp_path):
    left = train("align", str(model_folder()), tmp_path / "out", keep)
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == found
    assert left.adapters == ((str(tmp_path / "out/adapter"),) if keep == "adapter" else ())


def test_stages_build_on_adapters(model_folder, tmp_path):
    base = model_folder()
    refined = train("refine", str(base), tmp_path / "refined", "adapter")
    aligned = train("align", refined, tmp_path / "aligned", "adapter")
    adapters = (str(tmp_path / "refined/adapter"), str(tmp_path / "aligned/adapter"))
    assert (aligned.model.model, aligned.adapters) == (str(base), adapters)
    found = logits(Policy.load(aligned).model)
    torch.testing.assert_close(found, by_peft(base, *adapters), atol=2e-5, rtol=1e-4)
    assert float((found - by_peft(base, adapters[0])).abs().max()) > 1e-3


def test_training_does_not_start_from_a_rule(model_folder, tmp_path):
    ruled = PolicySpec(model=str(model_folder()), rule=RuleSpec(name="prompted"))
    with pytest.raises(
        ModelError, match="Alignment starts from weights, and the policy acts by the rule 'prompted'"
    ):
        train("align", ruled, tmp_path / "out", "both")
