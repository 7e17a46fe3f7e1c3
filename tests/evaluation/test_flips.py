"""Flips are found where there are some, and a float32 model has none."""

import pytest

from discernment.evaluation.evaluate import EvaluateOptions
from discernment.evaluation.flips import count_flips, find_flips
from discernment.evaluation.sample import read_samples
from discernment.models.policy import Policy
from tiny import make_benign, make_prompts

OPTIONS = EvaluateOptions(max_new_tokens=6, batch_size=4, openings=["Sorry", "I can't"])
BENCHMARKS = [make_prompts(5, name="pairs"), make_benign(3)]


def test_a_float32_model_has_none(tiny_policy, tmp_path):
    found = count_flips(tiny_policy, BENCHMARKS, OPTIONS, tmp_path)
    assert (found.prompts, found.changed, found.flips) == (13, 0, [])
    assert 0 <= found.rejection_change < 1e-6
    first, second = (read_samples(tmp_path / w / "samples.jsonl") for w in ("first", "second"))
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
