"""Flips are found where there are some, and a float32 model has none."""

import pytest

from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.flips import count_flips, evaluate_again, find_flips
from discernment.evaluation.sample import Draw, Sample, read_samples
from discernment.judges.verdict import Verdict
from discernment.policies.policy import Policy
from discernment.prompts import Label
from tiny import make_benign, make_prompts

OPTIONS = EvaluateOptions(max_new_tokens=6, batch_size=4, openings=["Sorry", "I can't"])
BENCHMARKS = [make_prompts(5, name="pairs"), make_benign(3)]


def test_a_float32_model_has_none(tiny_policy, tmp_path):
    found = count_flips(tiny_policy, BENCHMARKS, OPTIONS, tmp_path)
    assert (found.prompts, found.changed, found.flips) == (13, 0, [])
    assert 0 <= found.rejection_change < 1e-6
    first, second = (read_samples(tmp_path / w / "samples.jsonl") for w in ("first", "in-batches-of-1"))
    assert [s.prompt_id for s in first] != [s.prompt_id for s in second]


def test_a_policy_that_looks_at_its_batch_is_caught(tiny_policy, tmp_path):
    class Fickle(Policy):
        def generate(self, sequences, max_new_tokens):
            text = "I'm sorry, but I can't help with that." if len(sequences) == 1 else "Sure, here is how."
            return [c.__class__(text, c.finished, c.tokens) for c in super().generate(sequences, 1)]

    fickle = Fickle(tiny_policy.model, tiny_policy.chat, "fickle")
    options = OPTIONS.model_copy(update={"rejection": False})
    found = count_flips(fickle, BENCHMARKS, options, tmp_path)
    # 13 prompts in batches of four leave one alone the first time too
    assert (found.prompts, found.changed, len(found.flips)) == (13, 12, 12)
    assert {f.verdicts for f in found.flips} == {("compliance", "refusal")}
    assert found.rejection_change is None
    with pytest.raises(ValueError, match="not of the same prompts"):
        find_flips(read_samples(tmp_path / "first/samples.jsonl"), [])


def test_only_replies_that_changed_are_judged_again(tiny_policy, tmp_path):
    class Moody:
        """A judge that says another thing each time."""

        name = fingerprint = "moody"

        def __init__(self):
            self.asked = []

        def judge(self, prompt, completion):
            self.asked.append((prompt, completion))
            return Verdict.REFUSAL if len(self.asked) % 2 else Verdict.COMPLIANCE

    judge, options = Moody(), OPTIONS.model_copy(update={"rejection": False})
    evaluate(tiny_policy, BENCHMARKS, options, tmp_path / "first", judge=judge)
    first = read_samples(tmp_path / "first/samples.jsonl")
    assert len(judge.asked) == 13
    other = [s.model_copy(update={"completion": "another"}) if n < 2 else s for n, s in enumerate(first)]
    evaluate_again(tiny_policy, BENCHMARKS, options, tmp_path / "second", other, judge=judge)
    assert sorted(judge.asked[13:]) == sorted((s.prompt, s.completion) for s in first[:2])
    second = {(s.benchmark, s.prompt_id): s.verdict for s in read_samples(tmp_path / "second/samples.jsonl")}
    assert [second[s.benchmark, s.prompt_id] for s in first[2:]] == [s.verdict for s in first[2:]]


def test_every_draw_counts():
    draws = [Draw(completion=f"reply {n}", finished=True, verdict=Verdict.COMPLIANCE) for n in (1, 2)]
    first = Sample(
        prompt_id="0", benchmark="b", label=Label.TOXIC, prompt="p", completion="reply 0", finished=True,
        verdict=Verdict.COMPLIANCE, rejection_probability=None, further=draws,
    )  # fmt: skip
    changed = draws[1].model_copy(update={"completion": "No.", "verdict": Verdict.REFUSAL})
    second = first.model_copy(update={"further": (draws[0], changed)})
    found = find_flips([first], [second])
    assert (found.changed, [flip.completions for flip in found.flips]) == (1, [("reply 2", "No.")])
    assert find_flips([first], [first]).changed == 0
