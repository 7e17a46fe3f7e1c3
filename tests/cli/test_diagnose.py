"""`discern diagnose`."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from discernment.cli.options import parse_policy
from discernment.diagnosis.diagnosis import Diagnosis
from discernment.errors import ModelError
from discernment.files import read_json
from discernment.runs.measures.kernel import KernelMeasure
from discernment.runs.recipe import parse_recipe


def test_diagnose(discern, screen, files):
    command = ["diagnose", "tiny", "-s", "pairs.jsonl", "-s", "benign.jsonl", "-o", "why"]
    command += ["-O", "per_group=2", "-O", "kernel.k=2", "-M", "dtype=bfloat16"]
    code, output, _ = screen(*command)
    assert code == 0
    assert "layers of the kernel: 4 of 4" in output
    assert re.search(r"moved\s+toxic\s+seemingly toxic\s+benign", output)
    found = Diagnosis.model_validate(read_json(Path("why/diagnosis.json")))
    shown = " ".join(output.split())
    assert " ".join(found.finding.split()) in shown
    assert f"Next: discern refine tiny --layer {found.recommendation.layer} --out refined" in shown
    assert "Report: why/report.html; numbers: why/diagnosis.json" in shown
    assert found.options.kernel.by_layer
    assert sorted(p.name for p in Path("why").iterdir() if p.name != "inputs.json") == [
        "diagnosis.json",
        "report.html",
        "stage.json",
    ]
    assert "neighbor" in Path("why/report.html").read_text()

    before = Path("why/diagnosis.json").stat().st_mtime_ns
    code, output, _ = screen(*command, "--redact")
    assert code == 0
    assert "Nothing to do; the diagnosis is there." in output
    assert Path("why/diagnosis.json").stat().st_mtime_ns == before
    assert "neighbor" not in Path("why/report.html").read_text()
    assert "holds something else already" in discern(*command, "-O", "seed=1")[2]

    help_text = re.sub(r"[│\s]+", " ", discern("diagnose", "--help")[1])
    assert "Not one that you report on" in help_text


def test_diagnose_says_what_is_unscored(screen, files):
    model = AutoModelForCausalLM.from_pretrained("tiny")
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    (token,) = tokenizer("%", add_special_tokens=False)["input_ids"]
    weight = model.get_input_embeddings().weight.data
    model.config.tie_word_embeddings = False
    model.get_output_embeddings().weight = torch.nn.Parameter(weight.clone())
    weight[token] = float("nan")
    model.save_pretrained("spoilt")
    tokenizer.save_pretrained("spoilt")
    Path("bad.jsonl").write_text('{"prompt": "Only 5%?", "label": "toxic"}\n')
    command = ["diagnose", "spoilt", "-s", "pairs.jsonl", "-s", "bad.jsonl", "-o", "why", "-O", "per_group=2"]
    code, output, _ = screen(*command)
    assert code == 0
    assert "Caution: unscored prompts, which are in no number: 1." in output
    assert "bad-00001" in Path("why/report.html").read_text()


QUICK = ["-s", "pairs.jsonl", "-o", "why", "-O", "per_group=2", "-O", "kernel.k=2"]
TYPED = ["adapter=adapter", "layers=model.layers", "date=2025-03-09", "thinking=template", "template=plain"]


def test_the_next_command_is_about_what_was_typed(screen, files):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained("tiny"), config).save_pretrained("adapter")
    given = [word for option in TYPED for word in ("-M", option)]
    ruled = ["-M", "rule.name=prompted", "-M", "rule.options.system=Be careful."]
    code, output, _ = screen("diagnose", "./tiny", *QUICK, "--system", "Be kind; rm", *given, *ruled)
    assert code == 0
    found = Diagnosis.model_validate(read_json(Path("why/diagnosis.json")))
    assert found.model == "./tiny"
    assert f"Next: {found.command}" in output
    words = shlex.split(found.command)
    layer = str(found.recommendation.layer)
    assert words[:7] == ["discern", "refine", "./tiny", "--layer", layer, "--out", "refined"]
    assert words[7:9] == ["--system", "Be kind; rm"]
    assert words[9::2] == ["--model-option"] * len(TYPED)
    assert words[10::2] == TYPED
    assert parse_policy(words[2], words[8], words[10::2]) == parse_policy("./tiny", "Be kind; rm", TYPED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-M", "quantization=4bit"], "The weights of none/at/all would be quantised"),
        (["-O", "kernel.parameters=lora"], "they are merged when a model is loaded"),
        (["-O", "kernel.parameters=lora", "-M", "adapter=a/b"], "they are merged when a model is loaded"),
        (["-O", "kernel.parameters=lora", "-M", "quantization=8bit"], "needs adapters beside the weights"),
    ],
)
def test_what_has_no_kernel_is_refused_before_the_model_is_looked_for(discern, files, given, message):
    code, _, errors = discern("diagnose", "none/at/all", *QUICK, *given)
    assert code == 2
    assert message in errors
    assert not list(Path().glob("why*"))


def test_adapters_beside_quantised_weights_are_diagnosed(discern, files, model_folder):
    base = model_folder("llama", hidden_size=64, intermediate_size=128)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained("adapter")
    few = ["-M", "quantization=4bit", "-M", "adapter=adapter", "-O", "kernel.parameters=lora"]
    assert discern("diagnose", base, *QUICK, *few)[0] == 0
    found = Diagnosis.model_validate(read_json(Path("why/diagnosis.json")))
    assert {p.part for p in found.parts} == {f"layer {n}" for n in range(1, 5)}


@pytest.mark.parametrize("asked", [{"kernel": True, "probes": "pairs.jsonl"}, {"probes": "pairs.jsonl"}])
def test_a_recipe_with_quantised_weights_measures_no_kernel(files, asked):
    recipe = {
        "name": "try",
        "model": {"model": "tiny", "quantization": "8bit"},
        "data": {"general": "benign.jsonl", "safety": "pairs.jsonl"},
        "methods": ["base"],
        "evaluate": {"benchmarks": [{"set": "pairs.jsonl", "name": "pairs"}]},
        "diagnose": asked,
    }
    with pytest.raises(ModelError, match="The weights of tiny would be quantised"):
        KernelMeasure.asked(parse_recipe(recipe, "r"), [])
    recipe["model"] = "tiny"
    assert (KernelMeasure.asked(parse_recipe(recipe, "r"), []) is not None) == ("kernel" in asked)
