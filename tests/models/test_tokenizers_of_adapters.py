"""Whose tokenizer a policy with adapters speaks with, and whether the model has an embedding for all of its tokens."""

import copy
import json
import logging
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from discernment.errors import ModelError
from discernment.models.loading import load_chat, load_model, load_tokenizer, model_fingerprint
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from logs import own_messages
from tiny import make_model

OWN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}[reply] "


@pytest.fixture
def base(model_folder):
    return model_folder()


@pytest.fixture
def grown(tokenizer):
    """The tokenizer with two more tokens, and another template."""
    made = copy.deepcopy(tokenizer)
    assert made.add_tokens(["<tool>", "</tool>"]) == 2
    made.chat_template = OWN
    return made


def save_adapter(base, folder, tokenizer=None, rows=None, **options):
    """A LoRA adapter with weights that matter; of a model with `rows` embeddings if that is said."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    )
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return adapted.eval()


def test_an_adapter_speaks_with_its_own_tokenizer_and_template(base, grown, tokenizer, tmp_path):
    save_adapter(base, tmp_path / "own", grown, rows=len(grown))
    policy = Policy.load(PolicySpec(model=str(base), adapters=(str(tmp_path / "own"),)))
    assert policy.chat.render("Hi") == "[user] Hi<|im_end|>[reply] "
    assert policy.chat.tokenizer.get_vocab() == grown.get_vocab() != tokenizer.get_vocab()
    as_option = Policy.load(ModelSpec(model=str(base), adapter=str(tmp_path / "own")))
    assert as_option.chat.render("Hi") == policy.chat.render("Hi")


def test_an_adapter_brings_a_template_to_a_base_model_without_one(base, tokenizer, tmp_path):
    (base / "chat_template.jinja").unlink()
    assert load_chat(ModelSpec(model=str(base))).template == "plain"
    save_adapter(base, tmp_path / "whole", tokenizer)
    save_adapter(base, tmp_path / "template")
    (tmp_path / "template/chat_template.jinja").write_text(OWN)
    expected = {
        "whole": tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        ),
        "template": "[user] Hi<|im_end|>[reply] ",
    }
    for folder, text in expected.items():
        chat = load_chat(ModelSpec(model=str(base), adapter=str(tmp_path / folder)))
        assert (chat.template, chat.render("Hi")) == ("chat", text)


def test_the_last_adapter_that_brings_a_tokenizer_decides(base, grown, tokenizer, tmp_path, caplog):
    save_adapter(base, tmp_path / "first", grown, rows=len(grown))
    save_adapter(base, tmp_path / "second")
    spec = ModelSpec(model=str(base))
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    with caplog.at_level(logging.INFO, "discernment"):
        assert load_chat(spec, [first, second]).render("Hi") == "[user] Hi<|im_end|>[reply] "
        said = own_messages(caplog)
        assert said == [f"The adapter {second} brings no tokenizer; that of what it changes is used."]
    assert load_tokenizer(spec, [second]).get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(second)
    assert load_tokenizer(spec, [first, second]).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_is_named_comes_before_all_others(base, grown, tokenizer, tmp_path):
    save_adapter(base, tmp_path / "adapter", tokenizer)
    named = copy.deepcopy(tokenizer)
    named.chat_template = OWN
    named.save_pretrained(tmp_path / "named")
    spec = ModelSpec(model=str(base), adapter=str(tmp_path / "adapter"), tokenizer=str(tmp_path / "named"))
    assert Policy.load(spec).chat.render("Hi") == "[user] Hi<|im_end|>[reply] "
    with pytest.raises(ModelError, match=r"There is no tokenizer folder \./gone\."):
        load_tokenizer(spec.model_copy(update={"tokenizer": "./gone"}))


def test_a_policy_that_is_moved_takes_its_tokenizer_along(base, tokenizer, tmp_path):
    named = copy.deepcopy(tokenizer)
    named.chat_template = OWN
    named.save_pretrained(tmp_path / "named")
    save_adapter(base, tmp_path / "adapter")
    spec = PolicySpec(
        model=ModelSpec(model=str(base), tokenizer=str(tmp_path / "named")),
        adapters=(str(tmp_path / "adapter"),),
    )
    spec.save(tmp_path / "policy")
    moved = (tmp_path / "policy").rename(tmp_path / "elsewhere")
    for folder in (base, tmp_path / "named", tmp_path / "adapter"):
        shutil.rmtree(folder)
    assert Policy.load(str(moved)).chat.render("Hi") == "[user] Hi<|im_end|>[reply] "


def test_fingerprints_follow_the_tokenizer_that_is_used(base, tokenizer, tmp_path):
    save_adapter(base, tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "named")
    spec = ModelSpec(model=str(base))
    policy = PolicySpec(model=spec, adapters=(str(tmp_path / "adapter"),))
    named = spec.model_copy(update={"tokenizer": str(tmp_path / "named")})
    seen = [policy.fingerprint(), model_fingerprint(spec), model_fingerprint(named)]
    shutil.copytree(tmp_path / "named", tmp_path / "same")
    same = spec.model_copy(update={"tokenizer": str(tmp_path / "same")})
    assert model_fingerprint(same) == model_fingerprint(named)
    (tmp_path / "adapter/chat_template.jinja").write_text(OWN)
    seen.append(policy.fingerprint())
    tokenizer.save_pretrained(tmp_path / "adapter")
    seen.append(policy.fingerprint())
    (tmp_path / "named/chat_template.jinja").write_text(OWN)
    seen.append(model_fingerprint(named))
    assert len(set(seen)) == len(seen) == 6


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["embed_tokens", "lm_head"]}])
@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_that_were_resized_before_training(
    model_folder, tokenizer, grown, tmp_path, options, tied
):
    base = model_folder(tie_word_embeddings=tied)
    if tied:
        options = {**options, "modules_to_save": ["embed_tokens"]} if options else options
    adapted = save_adapter(base, tmp_path / "adapter", grown, rows=len(grown), **options)
    policy = Policy.load(ModelSpec(model=str(base), adapter=str(tmp_path / "adapter"), dtype="float32"))
    assert policy.model.get_input_embeddings().weight.shape[0] == len(grown) == len(tokenizer) + 2
    ids = torch.tensor([grown("How <tool> I </tool>")["input_ids"]])
    assert (ids >= len(tokenizer)).sum() == 2
    with torch.inference_mode():
        torch.testing.assert_close(policy.model(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_embeddings_that_were_cut_before_training(base, tokenizer, tmp_path):
    wide = tmp_path / "wide"
    make_model("llama", len(tokenizer) + 10).save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    adapted = save_adapter(wide, tmp_path / "adapter", rows=len(tokenizer))
    model = load_model(ModelSpec(model=str(wide), adapter=str(tmp_path / "adapter"), dtype="float32"))
    ids = torch.tensor([tokenizer("How do I?")["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_embeddings_that_are_not_all_there_are_named_with_both_sizes(base, tokenizer, grown, tmp_path):
    adapter, sizes = tmp_path / "adapter", rf"{len(grown)}.*{len(tokenizer)}"
    spec = ModelSpec(model=str(base), adapter=str(adapter))
    save_adapter(base, adapter, grown, rows=len(grown))
    state = load_file(adapter / "adapter_model.safetensors")
    for lost in (["lm_head"], ["lm_head", "embed_tokens"]):
        kept = {key: value for key, value in state.items() if not any(name in key for name in lost)}
        assert len(kept) == len(state) - len(lost)
        save_file(kept, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=sizes) as caught:
            Policy.load(spec)
        assert "\n" not in str(caught.value)


def test_more_tokens_than_embeddings(base, tokenizer, grown):
    grown.save_pretrained(base)
    with pytest.raises(
        ModelError, match=rf"has {len(grown)} tokens .* for {len(tokenizer)} \(none for '<tool>'\)"
    ):
        Policy.load(str(base))
    # A special token that the template never writes, as Gemma 3's image token, may lack an embedding ...
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    special.save_pretrained(base)
    assert len(special) == len(tokenizer) + 1
    assert Policy.load(str(base)).chat.render("Hi")
    # ... but not one that it writes, or that fills rows.
    special.chat_template = "<image>" + tokenizer.chat_template
    special.save_pretrained(base)
    with pytest.raises(ModelError, match="none for '<image>'"):
        Policy.load(str(base))
    special.chat_template, special.pad_token = tokenizer.chat_template, "<image>"
    special.save_pretrained(base)
    with pytest.raises(ModelError, match="none for '<image>'"):
        Policy.load(str(base))


def test_rows_that_pad_the_embeddings_are_fine(tokenizer, tmp_path):
    make_model("llama", len(tokenizer) + 10).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Policy.load(str(tmp_path)).chat.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("load", [load_model, load_tokenizer, model_fingerprint, Policy.load])
def test_an_adapter_is_not_taken_for_a_model(base, tmp_path, load):
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    if load is load_tokenizer or load is model_fingerprint:
        assert not (adapter / "config.json").exists()
    message = (
        f"{adapter} is an adapter of {base}, not a model; write `model: {base}` and `adapter: {adapter}`."
    )
    with pytest.raises(ModelError) as caught:
        load(ModelSpec(model=str(adapter)))
    assert str(caught.value) == message
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="is an adapter, not a model; write `model: BASE`"):
        load(ModelSpec(model=str(adapter)))


def test_an_adapter_beside_a_configuration_is_not_taken_for_a_model_either(base, tmp_path):
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    shutil.copy(base / "config.json", adapter)
    with pytest.raises(ModelError, match=f"is an adapter of {base}, not a model"):
        load_model(ModelSpec(model=str(adapter)))


def test_an_own_tokenizer_that_cannot_be_read_is_named(base, tmp_path):
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=f"The tokenizer in '{adapter}' cannot be loaded") as caught:
        load_tokenizer(ModelSpec(model=str(base), adapter=str(adapter)))
    assert "\n" not in str(caught.value)
    assert AutoTokenizer.from_pretrained(base)("Hi")["input_ids"]
    assert PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
