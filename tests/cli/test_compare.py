"""`discern compare` over evaluations, runs and methods of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from discernment.cli.compare import compare
from discernment.errors import DataError, RecipeError
from discernment.evaluation.results import Results
from discernment.evaluation.sample import Sample
from discernment.files import read_json, read_json_lines, write_json, write_json_lines
from discernment.prompts import Label


def evaluation(folder: Path, refused: int, *, prompts: int = 8, **options: object) -> Path:
    """Half of the prompts are toxic; the first `refused` of either half are refused."""
    rows = [
        Sample(
            prompt_id=f"{label}-{n}",
            benchmark="bench",
            label=label,
            category=f"kind {n % 2}",
            prompt=f"{label} prompt {n}",
            completion="No." if n < refused else "Yes.",
            finished=True,
            verdict="refusal" if n < refused else "compliance",
        ).model_dump(mode="json")
        for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC)
        for n in range(prompts // 2)
    ]
    write_json_lines(folder / "samples.jsonl", rows)
    write_json(
        folder / "stage.json", {"inputs": {"options": {"max_new_tokens": 32, **options}, "judge": "k"}}
    )
    return folder


def run(folder: Path, **refused: int) -> Path:
    for method, n in refused.items():
        evaluation(folder / "stages" / f"evaluate-{method}", n)
    methods = {method: {"stages": [f"align-{method}", f"evaluate-{method}"]} for method in refused}
    write_json(folder / "manifest.json", {"methods": methods})
    return folder


def compared(*evaluations: str, reference: str | None = None) -> Results:
    compare([Path(e) for e in evaluations], reference, Path("compared.json"))
    return Results.model_validate(read_json(Path("compared.json")))


def test_any_number_of_runs_and_evaluations(capsys) -> None:
    run(Path("one"), stl=3)
    run(Path("two"), dcr=2)
    evaluation(Path("alone"), 1)
    evaluation(Path("a=b"), 2, batch_size=3)
    results = compared("one", "x=two/dcr", "one=alone", "a=b")
    assert (results.methods, results.reference) == (["stl", "x", "one", "a=b"], "stl")
    rates = {(s.method, s.label): s.value for s in results.scores}
    assert rates["stl", Label.TOXIC] == 0.75
    assert rates["x", Label.SEEMINGLY_TOXIC] == 0.5
    assert "compared with stl" in capsys.readouterr().out
    assert compared("r=one", "two/dcr", reference="dcr").methods == ["r/stl", "dcr"]


def test_a_file_or_a_directory_of_results(capsys) -> None:
    run(Path("one"), stl=3, dcr=1)
    compare([Path("one")], "stl", Path("new/both.json"))
    results = Results.model_validate(read_json(Path("new/both.json")))
    assert (results.methods, results.reference) == (["stl", "dcr"], "stl")
    assert [p.name for p in Path("new").iterdir()] == ["both.json"]
    assert "Results: new/both.json" in capsys.readouterr().err
    compare([Path("one")], "stl", Path("page"), redact=True)
    names = ["comparison.html", "comparisons.csv", "results.json", "scores.csv", "verdicts.csv"]
    assert sorted(p.name for p in Path("page").iterdir()) == names
    assert Results.model_validate(read_json(Path("page/results.json"))) == results
    assert "toxic prompt 0" not in Path("page/verdicts.csv").read_text().replace("seemingly_toxic prompt", "")
    assert "Page: page/comparison.html" in capsys.readouterr().err


def test_only_common_prompts_count_and_the_others_are_mentioned(capsys) -> None:
    evaluation(Path("small"), 1, prompts=4)
    evaluation(Path("large"), 1, prompts=10)
    results = compared("small", "large")
    assert {s.scored for s in results.scores} == {2}
    assert "Left out, because not all have them: 6 of large." in capsys.readouterr().err


def test_prompts_are_the_same_by_their_texts_and_not_by_their_row_numbers() -> None:
    evaluation(Path("old"), 2, prompts=20)
    new = evaluation(Path("new"), 2, prompts=20) / "samples.jsonl"
    for n in reversed(range(10)):  # as if a row had been put in front
        new.write_text(new.read_text().replace(f'"toxic-{n}"', f'"toxic-{n + 1}"'))
    found = {c.label: c for c in compared("old", "new").comparisons}[Label.TOXIC]
    assert (found.difference, found.only_method, found.only_against, found.n) == (0, 0, 0, 10)


def test_wording_frames_are_those_of_the_first() -> None:
    """Two of them, so nothing is claimed of others; the second evaluation knows none."""
    old, _ = (evaluation(Path(name), n, prompts=40) / "samples.jsonl" for name, n in (("old", 4), ("new", 9)))
    rows = [row | {"frame": str(n % 2)} for n, (_, row) in enumerate(read_json_lines(old))]
    write_json_lines(old, rows)
    for row in compared("old", "new", reference="old").comparisons:
        assert (row.low, row.high) == (-1, 1)


def test_a_prompt_that_is_asked_twice_is_compared_twice() -> None:
    for name in ("old", "new"):
        path = evaluation(Path(name), 2, prompts=20) / "samples.jsonl"
        path.write_text(path.read_text().replace("toxic prompt 9", "toxic prompt 0"))
    assert {c.n for c in compared("old", "new").comparisons} == {10}


def test_benchmarks_have_the_names_that_the_first_gives_them() -> None:
    """A recipe names them, and `evaluate` calls them by their sets."""
    for name, refused in (("old", 4), ("new", 2)):
        path = evaluation(Path(name), refused) / "samples.jsonl"
        rows = [row | {"benchmark": f"{row['label']} {name}"} for _, row in read_json_lines(path)]
        rows.append(rows[0] | {"benchmark": "other", "prompt": f"of {name} alone"})
        write_json_lines(path, rows)
    results = compared("old", "new")
    assert results.benchmarks == ["toxic old", "seemingly_toxic old"]
    assert {c.n for c in results.comparisons if c.benchmark != "all"} == {4}


def test_user_mistakes() -> None:
    run(Path("one"), stl=3)
    evaluation(Path("alone"), 1)
    evaluation(Path("longer"), 1, max_new_tokens=64)
    other = evaluation(Path("other"), 1) / "samples.jsonl"
    other.write_text(other.read_text().replace('"prompt": "', '"prompt": "Please: '))
    Path("empty").mkdir()
    for arguments, error, words in (
        (["empty"], DataError, "empty holds neither an evaluation nor a run"),
        (["nowhere"], DataError, "nowhere holds neither"),
        (["one/dcr"], DataError, "The run one has no evaluation of 'dcr'; it has stl"),
        (["alone", "alone"], RecipeError, "Two evaluations are called 'alone'"),
        (["alone", "longer"], DataError, "made in different ways"),
        (["alone", "other"], DataError, "no prompt in common"),
    ):
        with pytest.raises(error, match=words):
            compare([Path(a) for a in arguments])

    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for name in ("one", "alone") for p in Path(name).rglob("*") if p.is_file()}

    before = files()
    for out, words in (
        ("one", "one holds the manifest.json of a run or an evaluation; name another place"),
        ("alone", "alone holds the stage.json of a run or an evaluation"),
        ("one/manifest.json", "one/manifest.json is a file of a run or an evaluation"),
        ("alone/stage.json", "alone/stage.json is a file of a run or an evaluation"),
    ):
        with pytest.raises(RecipeError, match=words):
            compare([Path("alone")], None, Path(out))
    assert files() == before
    for out in ("fine", "fine", "one/mine.json", "one/mine.json"):  # its own files may be made again
        compare([Path("alone")], None, Path(out))
    with pytest.raises(RecipeError, match="no evaluation called 'x'; there are alone"):
        compare([Path("alone")], "x")
