"""`discern diagnose`."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from discernment.diagnosis.diagnosis import Diagnosis
from discernment.files import read_json


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
