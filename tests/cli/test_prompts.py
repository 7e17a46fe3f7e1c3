"""`discern prompts` list, show, check and split."""

import json
import re

import pytest

from discernment.errors import DataError
from discernment.prompts.prompt_set import PromptSet

EVIL = "Kill \x1b[31mthe\x1b[0m [bold]process[/bold] \u202eesrever\x07 now?"


def write(path, *rows):
    path.write_text("".join(json.dumps({"label": "toxic", **row}) + "\n" for row in rows))


def test_list(invoke, tmp_path, monkeypatch):
    code, output = invoke("prompts", "list")
    assert code == 0
    lines = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert re.search(r"starter/toxic\s+toxic\s+refuse\s+\d+\s+Apache-2.0\s+built in", lines["starter/toxic"])
    assert re.search(
        r"xstest\s+seemingly_toxic toxic\s+answer refuse\s+450\s+CC BY 4.0\s+from the hub", lines["xstest"]
    )
    assert re.search(r"oktest\s+seemingly_toxic\s+answer\s+300\s+not stated\s+by hand", lines["oktest"])
    assert re.search(r"advbench\s+toxic\s+refuse\s+520\s+MIT\s+from the hub", lines["advbench"])
    assert "xstest_human_labels" not in lines
    write(tmp_path / "oktest.jsonl", {"prompt": "x"})
    monkeypatch.setenv("DISCERNMENT_DATA", str(tmp_path))
    assert re.search(
        r"oktest\s+seemingly_toxic\s+answer\s+300\s+not stated\s+at hand", invoke("prompts", "list")[1]
    )


def test_show(invoke, tmp_path):
    rows = [
        {"id": f"id{n}", "prompt": f"Rob bank {n}.", "response": f"No {n}.", "category": "crime"}
        for n in range(9)
    ]
    write(tmp_path / "own.jsonl", *rows)
    code, output = invoke("prompts", "show", "own.jsonl", "--count", "3", "--seed", "1")
    assert code == 0
    shown = re.findall(r"Rob bank (\d)\.", output)
    assert len(shown) == 3
    assert all(f"id{n} · toxic · crime" in output and f"→ No {n}." in output for n in shown)
    assert "9 prompts (9 toxic)" in output
    assert invoke("prompts", "show", "own.jsonl", "--count", "3", "--seed", "1")[1] == output
    assert {
        invoke("prompts", "show", "own.jsonl", "--count", "3", "--seed", str(s))[1] for s in range(4)
    } != {output}


def test_show_filters(invoke):
    code, output = invoke(
        "prompts", "show", "starter/pairs", "--label", "toxic", "--split", "test", "--count", "200"
    )
    assert code == 0
    heads = [line for line in output.splitlines() if " · " in line]
    assert len(heads) > 50
    assert all(" · toxic · " in line and line.endswith(" · test") for line in heads)
    assert [
        line
        for line in invoke("prompts", "show", "starter/pairs:test", "--label", "toxic", "--count", "200")[
            1
        ].splitlines()
        if " · " in line
    ] == heads


def test_untrusted_text_is_shown_and_does_nothing(invoke, tmp_path):
    write(tmp_path / "own.jsonl", {"id": "[red]a[/red]", "prompt": EVIL}, {"id": "b", "prompt": EVIL})
    for output in (invoke("prompts", "show", "own.jsonl")[1], invoke("prompts", "check", "own.jsonl")[1]):
        assert "[bold]process[/bold]" in output
        assert "[red]a[/red]" in output
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", output)
        assert "[31mthe" in output and "U+202E" in output


def test_check_of_a_clean_set(invoke):
    code, output = invoke("prompts", "check", "starter/pairs")
    assert code == 0
    assert "Duplicates: none." in output and "Split leaks: none." in output
    for model in ("bag of words", "form only", "form only, matched pairs"):
        assert re.search(rf"{model}\s+0\.\d{{3}}\s+0\.\d{{3}} to 0\.\d{{3}}", output)


def test_check_of_sets_that_overlap(invoke, tmp_path):
    write(tmp_path / "one.jsonl", *({"prompt": f"Rob the bank number {n}."} for n in range(30)))
    write(
        tmp_path / "two.jsonl",
        *({"prompt": f"ROB the bank number {n}"} for n in range(30)),
        {"prompt": "Sing."},
    )
    code, output = invoke("prompts", "check", "one.jsonl", "two.jsonl", "--limit", "4")
    assert code == 1
    assert re.search(r"Duplicates: \d+ pairs, \d+ of them across sets or splits", output)
    assert output.count("normalised") == 4
    assert "... and 26 more" in output
    assert "Label leaks cannot be measured: seemingly_toxic has no prompt" in output


def test_check_of_splits_that_leak(invoke, tmp_path):
    write(
        tmp_path / "own.jsonl",
        {"id": "a", "prompt": "Who is the killer?", "split": "train"},
        {"id": "b", "prompt": "Kill a man.", "split": "test", "keyword": "kill"},
    )
    code, output = invoke("prompts", "check", "own.jsonl")
    assert code == 1
    assert re.search(r"keyword 'kill'\s+b\s+a\s+Who is the killer\?", output)
    assert invoke("prompts", "check", "own.jsonl:test")[0] == 0


def test_repeats_within_one_set_are_no_failure(invoke, tmp_path):
    write(tmp_path / "own.jsonl", {"prompt": "Sing."}, {"prompt": "Sing."})
    code, output = invoke("prompts", "check", "own.jsonl")
    assert code == 0
    assert "1 pairs, 0 of them across" in output


def test_split(invoke, tmp_path):
    write(
        tmp_path / "own.jsonl",
        *({"id": f"{n}", "prompt": f"text {n}", "keyword": f"word{n // 2}x"} for n in range(40)),
    )
    code, output = invoke(
        "prompts",
        "split",
        "own.jsonl",
        "--out",
        "parts",
        "--train",
        "0.5",
        "--validation",
        "0",
        "--test",
        "0.5",
    )
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["test.jsonl", "train.jsonl"]
    parts = {name: PromptSet.from_jsonl(tmp_path / "parts" / f"{name}.jsonl") for name in ("train", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 20, "test": 20}
    assert all(p.split == name for name, part in parts.items() for p in part)
    assert {p.keyword for p in parts["train"]}.isdisjoint(p.keyword for p in parts["test"])
    assert re.search(r"parts/train.jsonl\s+20\s+20 toxic", output)
    assert invoke("prompts", "check", "parts/train.jsonl", "parts/test.jsonl")[0] == 0
    with pytest.raises(DataError, match=r"holds train\.jsonl, test\.jsonl already"):
        invoke("prompts", "split", "own.jsonl", "--out", "parts")


@pytest.mark.parametrize("name", ["starter/pairs:dev", "nowhere", "missing.jsonl", "hub"])
def test_unknown_sets(invoke, name):
    for verb in ("show", "check"):
        with pytest.raises(DataError, match=re.escape(name)):
            invoke("prompts", verb, name)


def test_wrong_options(invoke):
    assert invoke("prompts", "show", "starter/pairs", "--label", "harmful")[0] == 2
    assert invoke("prompts", "show", "starter/pairs", "--count", "0")[0] == 2
    assert invoke("prompts", "split", "starter/pairs")[0] == 2
