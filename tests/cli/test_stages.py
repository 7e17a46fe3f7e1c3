"""`discern refine`, `align` and `evaluate`, alone and one after another."""

from pathlib import Path

from discernment.evaluation.results import Results
from discernment.files import read_json

QUICK = ["-O", "max_new_tokens=3", "-O", "openings=[Sorry]", "-O", "unscored_limit=1"]


def test_refine_finds_its_layer(discern, files, caplog):
    refine = ["refine", "tiny", "--layer", "auto", "-s", "pairs.jsonl", "-o", "refined", "-O", "steps=1"]
    with caplog.at_level("INFO", "discernment"):
        code, output, errors = discern(*refine, "-O", "batch_size=4")
    assert (code, output) == (0, "Model: refined/model\n")
    assert errors.startswith("refine ...\n")
    record = read_json(Path("refined/stage.json"))
    assert record["inputs"]["options"]["layer"] == "auto"
    assert record["notes"]["layer"] in (1, 2, 3)
    assert record["notes"]["layer_reason"] in caplog.messages


def test_quiet_training_says_nothing_besides_its_result(discern, files, caplog):
    refine = ["refine", "tiny", "--layer", "auto", "-s", "pairs.jsonl", "-O", "steps=2", "-O", "batch_size=4"]
    assert "2/2" in discern(*refine, "-o", "loud")[2]  # the trainer's bar
    assert "layer" in caplog.text
    caplog.clear()
    assert discern(*refine, "-o", "still", "--quiet") == (0, "Model: still/model\n", "")
    assert caplog.text == ""


def test_the_verbs_one_after_another(discern, screen, files):
    refine = ["refine", "tiny", "--layer", "2", "-s", "pairs.jsonl", "-o", "refined", "-O", "steps=2"]
    refine += ["-O", "batch_size=4", "-O", "learning_rate=1e-3", "-O", "loss.name=supcon"]
    assert discern(*refine)[:2] == (0, "Model: refined/model\n")
    assert read_json(Path("refined/stage.json"))["inputs"]["options"]["loss"]["name"] == "supcon"
    assert discern(*refine) == (
        0,
        "Nothing to do; the model is there: refined/model\n",
        "refine (done before)\n",
    )

    align = ["align", "refined/model", "-s", "benign.jsonl", "-s", "pairs.jsonl", "-o", "aligned"]
    aligned = discern(*align, "-O", "learning_rate=3e-3", "-O", "batch_size=4")
    assert aligned[:2] == (0, "Model: aligned/model\n")

    for model, out in (("tiny", "before"), ("aligned/model", "after")):
        code, output, _ = screen(
            "evaluate", model, "-s", "pairs.jsonl", "-s", "benign.jsonl", "-o", out, *QUICK
        )
        assert code == 0
        assert "replies and rejection probabilities: 16 of 16" in output
        assert f"By the judge's verdicts, {model} " in output
        assert f"Samples: {out}/samples.jsonl; compare with others: discern compare {out} OTHER" in output
        results = Results.model_validate(read_json(Path(out) / "results.json"))
        assert (results.methods, results.benchmarks) == ([model], ["pairs.jsonl", "benign.jsonl"])

    code, output, _ = screen("compare", "before", "dcr=after", "--out", "both.json")
    assert code == 0
    assert "compared with before, dcr" in output
    assert "Results: both.json" in output
    assert Results.model_validate(read_json(Path("both.json"))).methods == ["before", "dcr"]
    assert discern("compare", "before", "before")[2].startswith(
        "discern: Two evaluations are called 'before'"
    )
    assert discern("compare", "before", "--reference", "x")[2].startswith(
        "discern: There is no evaluation called 'x'"
    )
    Path("rivers.jsonl").write_text('{"prompt": "Name a river.", "label": "benign"}\n')
    assert discern("evaluate", "tiny", "-s", "rivers.jsonl", "-o", "other", *QUICK)[0] == 0
    assert "no prompt in common" in discern("compare", "before", "other")[2]
    discern("evaluate", "tiny", "-s", "pairs.jsonl", "-o", "longer", *QUICK, "-O", "max_new_tokens=5")
    assert "were made in different ways" in discern("compare", "before", "longer")[2]
    discern("evaluate", "tiny", "-s", "pairs.jsonl", "-o", "plain", *QUICK, "-M", "template=plain")
    plain, chat = (Path(out, "samples.jsonl").read_text() for out in ("plain", "before"))
    assert plain
    assert plain != chat
    assert "known" in discern("evaluate", "tiny", "-o", "none", "-M", "zzz=1")[2]


def test_a_layer_in_other_digits_is_a_sentence(discern, files):
    code, _, error = discern("refine", "tiny", "--layer", "²", "-s", "pairs.jsonl", "-o", "refined")
    assert (code, error.count("\n"), "layer" in error) == (2, 1, True)
