"""A stage is named after all that it depends on, is done once, and goes on where it was interrupted."""

import json
from pathlib import Path

import pytest

from discernment.cost import StageCost
from discernment.errors import RunError, TrainingError
from discernment.files import read_json
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.prompts import PromptSet, Provenance
from discernment.runs import stages
from discernment.runs.stages import Alike, Quiet, StageRunner, run_into, share_stages
from discernment.training.options import LoraOptions
from tiny import make_benign, make_prompts


class Heard(Quiet):
    """A reporter that remembers the stages."""

    def __init__(self):
        self.stages = []

    def stage(self, name, owner, *, reused):
        self.stages.append((name, owner, reused))


class Judge:
    def __init__(self, fingerprint):
        self.fingerprint = fingerprint


def write_model(out, text="weights"):
    (out / "model").mkdir()
    (out / "model/config.json").write_text("{}")
    (out / "model/model.safetensors").write_text(text)


def train(out, **inputs):
    write_model(out)
    PolicySpec(model=str(out / "model")).write(out)
    return StageCost(steps=3, tokens=40, notes={"kept_step": 2})


def train_otherwise(out, **inputs):
    return train(out, **inputs)


@pytest.fixture
def base(tmp_path):
    write_model(tmp_path)
    return PolicySpec(model=str(tmp_path / "model"))


@pytest.fixture
def runner(tmp_path):
    return StageRunner(tmp_path / "stages", Heard())


def test_a_stage_is_done_once_and_shared(tmp_path, base, runner):
    inputs = {"start": base, "prompts": make_prompts(2), "options": LoraOptions()}
    runner.owner = "one"
    first = runner("align", train, **inputs)
    runner.owner = "two"
    assert runner("align", train, **inputs) == first
    stage = next((tmp_path / "stages").iterdir())
    assert first.model.model == str(stage / "model")
    assert runner.ran == 1
    assert runner.owners == {stage.name: ["one", "two"]}
    assert runner.reporter.stages == [("align", "one", False), ("align", "two", True)]

    record = runner.records[stage.name]
    assert (record.id, record.name, record.steps, record.tokens) == (stage.name, "align", 3, 40)
    assert record.notes == {"kept_step": 2}
    assert record.seconds >= 0
    assert record.inputs["prompts"] == {"name": "made", "prompts": 4, "sha256": make_prompts(2).fingerprint}

    later = StageRunner(tmp_path / "stages", Heard())
    assert later("align", train, **inputs) == first
    assert later.ran == 0
    assert later.records == runner.records


def reply(out, *, judge, asked, replied, **inputs):
    """Replies that are not there yet are given; whoever judges, all are judged."""
    out.mkdir(exist_ok=True)
    if not (out / "replies.txt").is_file():
        replied.append(asked)
        (out / "replies.txt").write_text(f"replies to {asked}")
    (out / "judged.txt").write_text(judge.fingerprint)
    return StageCost(steps=1, tokens=1)


def test_what_does_not_depend_on_the_input_that_changed_is_not_done_again(runner):
    replied, alike = [], Alike("judge", ("replies.txt",))

    def run(judge, asked="a"):
        inputs = {"judge": Judge(judge), "asked": asked}
        return runner.run("evaluate", reply, inputs, {"replied": replied}, alike)

    first, second = run("one"), run("two")
    assert first != second
    assert replied == ["a"]
    assert (second / "replies.txt").read_text() == "replies to a"
    assert (second / "judged.txt").read_text() == "two"
    run("two", "b")  # differs in more than the judge from one, and in another input from two
    assert replied == ["a", "b"]
    (first / "replies.txt").write_text("not what it was")
    (second / "replies.txt").write_text("nor this")
    run("three")
    assert replied == ["a", "b", "a"]


def test_the_name_changes_with_every_input_and_only_then(tmp_path, base, runner):
    prompts, other = make_prompts(2), tmp_path / "other"
    other.mkdir()
    write_model(other, "other weights")
    inputs = {"start": base, "sets": [prompts], "options": LoraOptions(), "judge": Judge("a"), "none": None}

    def name(work=train, stage="align", extra=None, **changes):
        return runner.run(stage, work, {**inputs, **changes}, extra).name

    first = name()
    assert first.startswith("align-")
    same = {
        "again": name(),
        "equal values": name(sets=(make_prompts(2),), options=LoraOptions(rank=16), judge=Judge("a")),
        "another device": name(start=base.with_model(device="cpu")),
        "what the result does not depend on": name(extra={"progress": print}),
    }
    assert {what for what, found in same.items() if found != first} == set()
    different = {
        "function": name(train_otherwise),
        "stage": name(stage="refine"),
        "weights": name(start=PolicySpec(model=str(other / "model"))),
        "a rule": name(start=base.with_rule(RuleSpec(name="prompted"))),
        "system": name(start=base.with_model(system="")),
        "dtype": name(start=base.with_model(dtype="float16")),
        "set's name": name(sets=[prompts.renamed("other")]),
        "prompts": name(sets=[PromptSet(prompts[:3], prompts.provenance)]),
        "order of prompts": name(sets=[PromptSet(prompts[::-1], prompts.provenance)]),
        "more sets": name(sets=[prompts, make_benign(1)]),
        "options": name(options=LoraOptions(rank=17)),
        "judge": name(judge=Judge("b")),
        "none": name(none=make_benign(1)),
        "one more": name(more=1),
    }
    assert len({first, *different.values()}) == 1 + len(different)


def test_a_stage_on_a_stage_hears_of_what_that_one_was_made_from(base, runner):
    def chain(prompts):
        refined = runner("refine", train, start=base, prompts=prompts)
        return runner("align", train, start=refined).model.model

    assert chain(make_prompts(2)) == chain(make_prompts(2))
    # the two refined models have the same bytes here
    assert chain(make_prompts(3)) != chain(make_prompts(2))
    assert runner.ran == 4


def test_a_stage_on_texts_of_another_hears_of_what_those_were_made_from(base, runner):
    def write(out, text):
        (out / "texts.txt").write_text("the same anyway")
        return StageCost(steps=1, tokens=1)

    def chain(text):
        texts = runner.run("replies", write, {"text": text})
        assert (texts / "texts.txt").is_file()
        return runner("align", train, start=base, harmful=texts).model.model

    assert chain("one") == chain("one")
    assert chain("two") != chain("one")
    assert runner.ran == 4
    assert read_json(Path(chain("one")).parent / "stage.json")["inputs"]["harmful"]["stage"].startswith(
        "replies-"
    )


def test_what_an_interrupted_stage_left_is_there_for_the_next_attempt(tmp_path, base, runner):
    seen = []

    def work(out, start, until):
        seen.append(sorted(p.name for p in out.iterdir()))
        (out / f"step-{len(seen)}").touch()
        if len(seen) < until:
            raise KeyboardInterrupt
        return StageCost(steps=1, tokens=1)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            runner.run("align", work, {"start": base, "until": 3})
        assert [p.suffix for p in (tmp_path / "stages").iterdir()] == [".part"]
    assert (runner.ran, runner.records) == (0, {})
    out = runner.run("align", work, {"start": base, "until": 3})
    assert seen == [[], ["step-1"], ["step-1", "step-2"]]
    assert list((tmp_path / "stages").iterdir()) == [out]
    assert {"step-1", "step-2", "step-3", "stage.json"} == {p.name for p in out.iterdir()}


def test_a_directory_of_ones_own(tmp_path, base):
    out, heard = tmp_path / "mine", Heard()
    inputs = {"start": base, "prompts": make_prompts(2)}
    assert run_into(out, "align", train, inputs, heard)
    assert (out / "model/config.json").is_file()
    assert read_json(out / "stage.json")["steps"] == 3
    assert not run_into(out, "align", train, inputs, heard)
    assert heard.stages == [("align", "", False), ("align", "", True)]
    with pytest.raises(RunError, match=r"mine holds something else already; name another"):
        run_into(out, "align", train, {**inputs, "prompts": make_prompts(3)}, heard)


def test_what_another_function_left_is_not_taken_for_a_result(tmp_path, base, monkeypatch):
    def other(out, start):
        return StageCost(steps=7, tokens=1)

    def interrupted(out, start):
        (out / "half").touch()
        raise KeyboardInterrupt

    out, inputs = tmp_path / "mine", {"start": base}
    assert run_into(out, "align", train, inputs, Quiet())
    with pytest.raises(RunError, match="holds something else already"):
        run_into(out, "align", other, inputs, Quiet())
    monkeypatch.setattr(stages, "FORM", stages.FORM + 1)  # as when stages come to mean something else
    with pytest.raises(RunError, match="holds something else already"):
        run_into(out, "align", train, inputs, Quiet())
    with pytest.raises(KeyboardInterrupt):
        run_into(tmp_path / "new", "align", interrupted, inputs, Quiet())
    with pytest.raises(RunError, match="interrupted stage with other inputs"):
        run_into(tmp_path / "new", "align", other, inputs, Quiet())


def test_what_older_versions_left_is_taken_where_the_inputs_are_the_same(tmp_path, base):
    out, inputs = tmp_path / "mine", {"start": base}
    assert run_into(out, "align", train, inputs, Quiet())
    record = read_json(out / "stage.json")
    assert record.pop("key").startswith("align-")
    (out / "stage.json").write_text(json.dumps(record))
    assert not run_into(out, "align", train, inputs, Quiet())
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part/inputs.json").write_text(json.dumps(record["inputs"]))
    (tmp_path / "new.part/checkpoint").touch()
    assert run_into(tmp_path / "new", "align", train, inputs, Quiet())
    assert (tmp_path / "new/checkpoint").is_file()


def test_another_spelling_of_the_directory_changes_nothing(tmp_path, base):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for directory in (tmp_path / "run", tmp_path / "run/../run", tmp_path / "link"):
        runner = StageRunner(directory / "stages", Quiet())
        aligned = runner("align", train, start=base)
        runner("again", train, start=aligned)
    assert (runner.ran, len([*(tmp_path / "run/stages").iterdir()])) == (0, 2)


def test_a_directory_of_ones_own_is_worked_in_by_one_process(tmp_path, base):
    def work(out, start):
        with pytest.raises(RunError, match=r"mine is in use by another process; wait for it or name another"):
            run_into(tmp_path / "mine", "align", train, {"start": start}, Quiet())
        return train(out, start=start)

    assert run_into(tmp_path / "mine", "align", work, {"start": base}, Quiet())
    assert [path.name for path in tmp_path.iterdir() if "lock" in path.name] == []


def test_a_link_stands_for_what_it_points_to(tmp_path, base):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert run_into(tmp_path / "link", "align", train, {"start": base}, Quiet())
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/stage.json").is_file()


def test_nothing_that_others_left_is_written_over(tmp_path, base):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    for path in (foreign, foreign / "thesis.tex"):
        with pytest.raises(RunError, match="holds something else already"):
            run_into(path, "align", train, {"start": base}, Quiet())
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert run_into(tmp_path / "empty", "align", train, {"start": base}, Quiet())


def test_an_interrupted_directory_of_ones_own_goes_on_with_the_same_inputs_only(tmp_path, base):
    def work(out, start, prompts):
        if not (out / "half").exists():
            (out / "half").touch()
            raise KeyboardInterrupt
        return StageCost(steps=1, tokens=1)

    out, inputs = tmp_path / "mine", {"start": base, "prompts": make_prompts(2)}
    with pytest.raises(KeyboardInterrupt):
        run_into(out, "align", work, inputs, Quiet())
    assert not out.exists()
    with pytest.raises(RunError, match=r"mine\.part holds an interrupted stage with other inputs"):
        run_into(out, "align", work, {**inputs, "prompts": make_prompts(3)}, Quiet())
    assert run_into(out, "align", work, inputs, Quiet())
    assert (out / "half").exists()


def test_a_mistake_before_the_first_result_does_not_stand_in_the_way(tmp_path, base):
    def work(out, start, right):
        if not right:
            raise TrainingError("No.")
        return StageCost(steps=1, tokens=1)

    with pytest.raises(TrainingError):
        run_into(tmp_path / "mine", "align", work, {"start": base, "right": False}, Quiet())
    assert run_into(tmp_path / "mine", "align", work, {"start": base, "right": True}, Quiet())


def test_a_model_that_another_verb_left_is_known_by_its_weights(tmp_path, base):
    """Its directory has the user's name, which says nothing of the content."""
    refined, aligned = tmp_path / "refined", tmp_path / "aligned"
    run_into(refined, "refine", train, {"start": base}, Quiet())
    inputs = {"start": ModelSpec(model=str(refined / "model"))}
    assert run_into(aligned, "align", train, inputs, Quiet())
    assert not run_into(aligned, "align", train, inputs, Quiet())
    (refined / "model/model.safetensors").write_text("refined anew")
    with pytest.raises(RunError, match="holds something else already"):
        run_into(aligned, "align", train, inputs, Quiet())


def test_runs_share_stages_in_one_directory(tmp_path, base):
    whole = tmp_path / "whole"
    for run in (whole / "one", whole / "trials/two", whole / "one"):
        share_stages(run, whole / "stages")
    assert StageRunner(whole / "one/stages", Quiet())("align", train, start=base)
    moved = whole.rename(tmp_path / "moved")
    later = StageRunner(moved / "trials/two/stages", Quiet())
    assert later("align", train, start=base)
    assert later.ran == 0
    assert len(list((moved / "stages").iterdir())) == 1
    (moved / "three/stages").mkdir(parents=True)
    with pytest.raises(
        RunError, match=r"three/stages is in the way of the stages that all runs in .*moved share"
    ):
        share_stages(moved / "three", moved / "stages")


def test_records_are_plain_json(base, runner):
    out = runner.run("align", train, {"start": base, "sets": [make_prompts(1)], "options": LoraOptions()})
    record = json.loads((out / "stage.json").read_text())
    assert record["inputs"]["options"] == {"rank": 16, "alpha": 32.0, "dropout": 0.0, "keep": "both"}
    assert set(record["inputs"]["start"]) == {"policy"}
    assert Provenance(name=record["inputs"]["sets"][0]["name"]) == make_prompts(1).provenance
