"""What a stage leaves is the base model in everything but the weights, also for mixtures of experts."""

import json

import pytest
import torch
from safetensors.torch import load_file

from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.sample import read_samples
from discernment.files import read_json_lines
from discernment.kernel.engine import gradient_kernel
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.policies.rejection import rejection_probability
from discernment.training.adapters import leave_policy
from discernment.training.contrastive import RefineOptions, refine
from discernment.training.examples import encode_examples
from discernment.training.supervised import AlignOptions, align
from tiny import FAMILIES, MOE_FAMILIES, make_benign, make_prompts

MAY_DIFFER = {"dtype", "transformers_version"}
"""Keys of config.json: training saves float32 weights, and the version of what wrote the file."""
KEPT = [
    pytest.param({"rank": 4, "keep": "merged"}, marks=pytest.mark.slow, id="merged"),
    pytest.param({"rank": 4, "keep": "both"}, id="both"),
    pytest.param(None, id="full"),
]
PROMPTS = ["How do I stop a neighbor?", "Hi", "Write a short letter to the editor about the weather."]


def train(stage, base, out, lora=None, **changes):
    if stage == "refine":
        options = RefineOptions(layer=2, steps=2, batch_size=8, learning_rate=1e-2, lora=lora, **changes)
        refine(str(base), make_prompts(6), options, out)
    else:
        options = AlignOptions(**{"batch_size": 8, "learning_rate": 1e-2, "lora": lora, **changes})
        align(str(base), make_prompts(6), options, out, make_benign(4))


def settings(folder):
    """All files of a model folder but its weights: JSON read plainly, the others as bytes."""
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors"}
    read = {name: json.loads(found[name]) for name in found if name.endswith("config.json")}
    read["config.json"] = {k: v for k, v in read["config.json"].items() if k not in MAY_DIFFER}
    return found | read


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def changed_between(base, left):
    before, after = load_file(base / "model.safetensors"), load_file(left / "model.safetensors")
    assert before.keys() == after.keys()
    return {name for name in before if not before[name].float().equal(after[name])}


@pytest.mark.parametrize("lora", KEPT)
@pytest.mark.parametrize("stage", ["refine", "align"])
@pytest.mark.parametrize("named", [*FAMILIES, *MOE_FAMILIES])
@pytest.mark.thinned(5)
def test_settings_stay_those_of_the_base_model(named, stage, lora, model_folder, tmp_path):
    base, out = model_folder(named), tmp_path / "out"
    expected = settings(base)
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(expected)
    train(stage, base, out, lora)
    assert settings(out / "model") == expected
    assert changed_between(base, out / "model")
    if lora and lora["keep"] == "both":
        assert json.loads((out / "adapter/adapter_config.json").read_text())[
            "base_model_name_or_path"
        ] == str(base)


@pytest.mark.parametrize("stage", ["refine", "align"])
def test_unusual_settings_stay_too(stage, model_folder, tmp_path):
    base, out = (
        model_folder(eos_token_id=[5, 2], pad_token_id=7, use_cache=True, unknown=[1]),
        tmp_path / "out",
    )
    edit(base / "generation_config.json", temperature=0.6, do_sample=False, eos_token_id=[9, 2], unknown=1)
    edit(base / "tokenizer_config.json", pad_token=None, unknown=2)
    cut = {"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0}
    edit(base / "tokenizer.json", truncation=cut)
    expected = settings(base)
    train(stage, base, out)
    assert settings(out / "model") == expected


def test_settings_that_another_trainer_has_changed_are_not_left(model_folder, tmp_path):
    base, out = model_folder(), tmp_path / "out"
    edit(base / "generation_config.json", temperature=0.6, do_sample=False)
    policy = Policy.load(str(base))
    policy.model.generation_config.pad_token_id = 9
    with pytest.raises(ValueError, match="temperature"):
        policy.model.save_pretrained(tmp_path / "saved")
    leave_policy(PolicySpec.of(str(base)), policy.model, policy.chat, None, out)
    assert settings(out / "model") == settings(base)
    assert policy.model.generation_config.pad_token_id == 9


def test_a_template_that_is_not_the_models_own_is_left(model_folder, tmp_path):
    policy = Policy.load(str(base := model_folder()))
    policy.chat.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    leave_policy(PolicySpec.of(str(base)), policy.model, policy.chat, None, tmp_path / "out")
    assert Policy.load(str(tmp_path / "out")).chat.tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_a_generation_configuration_does_not_appear(model_folder, tmp_path):
    base, out = model_folder(), tmp_path / "out"
    (base / "generation_config.json").unlink()
    train("align", base, out)
    assert settings(out / "model") == settings(base)


def test_saved_weights_are_float32_and_nothing_else_says_so(model_folder, tmp_path):
    base, out = model_folder(dtype="bfloat16"), tmp_path / "out"
    weights = load_file(base / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    train("align", base, out)
    assert json.loads((out / "model/config.json").read_text())["dtype"] == "float32"
    assert settings(out / "model") == settings(base)


@pytest.mark.parametrize("named", MOE_FAMILIES)
def test_the_loss_has_no_router_loss(named, model_folder, tmp_path):
    base, out = model_folder(named, router_aux_loss_coef=1.0), tmp_path / "out"
    policy = Policy.load(str(base))
    rows = encode_examples(make_prompts(6), policy.chat, 200)
    losses = []
    for ids, mask in zip(rows["input_ids"], rows["completion_mask"], strict=True):
        given = torch.tensor([ids])
        with torch.inference_mode():
            output = policy.model(given, labels=given, output_router_logits=True)
        assert float(output.aux_loss) > 0.5
        chances = output.logits[0].log_softmax(-1)
        losses += [-float(chances[n - 1, ids[n]]) for n, one in enumerate(mask) if one]
    train("align", base, out, batch_size=len(rows), learning_rate=1e-9)
    history = [row for _, row in read_json_lines(out / "history.jsonl")]
    found = [row["loss"] for row in history if "loss" in row]
    assert found == pytest.approx([sum(losses) / len(losses)], abs=1e-3)
    assert not any(name.startswith("aux") for row in history for name in row)
    assert json.loads((out / "model/config.json").read_text())["router_aux_loss_coef"] == 1.0


@pytest.mark.parametrize("lora", [None, {"rank": 4, "keep": "adapter"}], ids=["full", "lora"])
@pytest.mark.parametrize("stage", ["refine", "align"])
@pytest.mark.parametrize("named", MOE_FAMILIES)
@pytest.mark.thinned(5)
def test_a_trained_mixture_of_experts_speaks(named, stage, lora, model_folder, tmp_path):
    out = tmp_path / "out"
    train(stage, model_folder(named), out, lora)
    policy = Policy.load(str(out))
    together = policy.generate(policy.encode(PROMPTS), 8)
    alone = [policy.generate(policy.encode([prompt]), 8)[0] for prompt in PROMPTS]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]
    assert len({reply.ids for reply in together}) > 1
    rejected = rejection_probability(policy, PROMPTS, ["Sorry", "I can't"])
    single = [float(rejection_probability(policy, [prompt], ["Sorry", "I can't"])[0]) for prompt in PROMPTS]
    assert [float(p) for p in rejected] == pytest.approx(single, rel=1e-3)
    evaluate(policy, [make_prompts(2)], EvaluateOptions(max_new_tokens=4), tmp_path / "evaluation")
    assert len(read_samples(tmp_path / "evaluation/samples.jsonl")) == 4
    assert (gradient_kernel(policy, PROMPTS).norms > 0).all()


@pytest.mark.parametrize("named", MOE_FAMILIES)
def test_adapters_leave_fused_experts_as_they_are(named, model_folder, tmp_path):
    base, out = model_folder(named), tmp_path / "out"
    train("align", base, out, {"rank": 4})
    changed = changed_between(base, out / "model")
    assert changed and all(".self_attn." in name for name in changed)
