"""Replies that a stage writes for later ones: once each, the same after an interruption, refusals set apart."""

import pytest

from discernment.errors import TrainingError
from discernment.files import read_json_lines, write_json_lines
from discernment.models.model_spec import ModelSpec
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec
from discernment.training.replies import FILE, ReplyOptions, replies_in, with_replies, write_replies
from tiny import make_prompts

OPTIONS = ReplyOptions(max_tokens=6, batch_size=3)


def test_replies_are_those_of_the_policy(model_folder, tmp_path):
    start, prompts = PolicySpec.of(ModelSpec(model=str(model_folder()))), make_prompts(2)
    cost = write_replies(start, prompts, ReplyOptions(max_tokens=6, temperature=0), 0, tmp_path)
    policy = Policy.load(start)
    said = policy.generate(policy.encode(prompts.asked), 6)
    rows = [row for _, row in read_json_lines(tmp_path / FILE)]
    assert [(r["key"], r["reply"]) for r in rows] == [
        (p.id, reply.text) for p, reply in zip(prompts, said, strict=True)
    ]
    assert (cost.steps, cost.tokens) == (4, sum(reply.tokens for reply in said))


def test_an_interrupted_stage_ends_with_the_same_bytes(model_folder, tmp_path, monkeypatch):
    start, prompts = PolicySpec.of(ModelSpec(model=str(model_folder()))), make_prompts(4)
    whole = write_replies(start, prompts, OPTIONS, 1, tmp_path / "whole")
    said = (tmp_path / "whole" / FILE).read_bytes()
    assert len(said.splitlines()) == len(prompts)

    class Stop(Policy):
        asked = 0

        def generate(self, *args, **kwargs):
            Stop.asked += 1
            if Stop.asked == 3:
                raise KeyboardInterrupt
            return super().generate(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("discernment.training.replies.Policy", Stop)
        write_replies(start, prompts, OPTIONS, 1, tmp_path / "broken")
    torn = (tmp_path / "broken" / FILE).read_bytes()
    assert said.startswith(torn)
    assert len(torn.splitlines()) == 6
    (tmp_path / "broken" / FILE).write_bytes(torn[:-5])  # and it was cut off within a line, within a batch
    assert write_replies(start, prompts, OPTIONS, 1, tmp_path / "broken") == whole
    assert (tmp_path / "broken" / FILE).read_bytes() == said
    write_replies(start, prompts, OPTIONS, 2, tmp_path / "other")
    assert (tmp_path / "other" / FILE).read_bytes() != said


def test_refusals_and_silence_are_no_answers(tmp_path):
    prompts = make_prompts(2)
    replies = ["I'm sorry, but I can't help with that.", " Mix flour and water. ", " ", "Sure, here is how."]
    write_json_lines(
        tmp_path / FILE, [{"key": p.id, "reply": r} for p, r in zip(prompts, replies, strict=True)]
    )
    assert [(p.id, p.response) for p in with_replies(prompts, tmp_path, refusals=False)] == [
        (prompts[1].id, "Mix flour and water."),
        (prompts[3].id, "Sure, here is how."),
    ]
    assert len(with_replies(prompts, tmp_path, refusals=True)) == 3
    refused = prompts.filter(lambda p: p.id == prompts[0].id, "the first id")
    with pytest.raises(TrainingError, match="Of 1 prompts of made, the model answered none"):
        with_replies(refused, tmp_path, refusals=False)


def test_several_replies_to_a_prompt_are_drawn_anew(model_folder, tmp_path, monkeypatch):
    start, prompts = PolicySpec.of(ModelSpec(model=str(model_folder()))), make_prompts(3)
    options = ReplyOptions(max_tokens=6, temperature=1.0, batch_size=4)
    cost = write_replies(start, prompts, options, 1, tmp_path / "three", draws=3)
    found = replies_in(tmp_path / "three")
    assert (cost.steps, list(found)) == (18, [p.id for p in prompts])
    assert {len(of_prompt) for of_prompt in found.values()} == {3}
    assert all(len(set(of_prompt)) == 3 for of_prompt in found.values())
    write_replies(start, prompts, options, 1, tmp_path / "one")
    alone = replies_in(tmp_path / "one")
    assert {key: [of_prompt[0]] for key, of_prompt in found.items()} == alone
    assert [p.response for p in with_replies(prompts, tmp_path / "three", refusals=True)] == [
        of_prompt[0] for of_prompt in alone.values()
    ]
    torn = (tmp_path / "three" / FILE).read_bytes()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / FILE).write_bytes(torn[: len(torn) // 2])
    assert write_replies(start, prompts, options, 1, tmp_path / "again", draws=3) == cost
    assert (tmp_path / "again" / FILE).read_bytes() == torn


def test_a_reply_that_was_cut_ends_with_its_last_whole_sentence(model_folder, tmp_path):
    start = PolicySpec.of(ModelSpec(model=str(model_folder())))
    write_replies(start, make_prompts(1), ReplyOptions(max_tokens=2, temperature=0), 0, tmp_path)
    assert {row["finished"] for _, row in read_json_lines(tmp_path / FILE)} == {False}
    cut = {
        "a": "First this. Then 1.5 cups of",
        "b": 'He said "Stop!" and went',
        "c": "no end of it",
        "d": "Wait. Go on",
    }
    rows = [{"key": key, "reply": reply, "tokens": 9, "finished": key == "d"} for key, reply in cut.items()]
    write_json_lines(tmp_path / FILE, rows)
    assert replies_in(tmp_path) == {
        "a": ["First this."],
        "b": ['He said "Stop!"'],
        "c": ["no end of it"],
        "d": ["Wait. Go on"],
    }
