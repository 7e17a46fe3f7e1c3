"""An evaluation records every prompt, does not depend on how it is cut up, and goes on where it was."""

import pytest

from discernment.errors import DataError
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.sample import Sample, read_samples
from discernment.files import append_json_lines, read_json_lines
from discernment.judges import Judgement, KeywordJudge
from discernment.judges.verdict import Verdict
from discernment.policies.policy import Policy
from discernment.policies.rejection import rejection_probability
from discernment.prompts import PromptSet, Provenance
from tiny import make_benign, make_prompts

OPTIONS = EvaluateOptions(max_new_tokens=6, batch_size=4, openings=["Sorry", "I can't"])
BENCHMARKS = [make_prompts(5, name="pairs"), make_benign(3)]
PROMPTS = sum(map(len, BENCHMARKS))


class Counting(Policy):
    """Counts the batches that it generates, and the prompts in them."""

    batches = 0
    prompts = 0

    def generate(self, sequences, max_new_tokens, **how):
        self.batches += 1
        self.prompts += len(sequences)
        return super().generate(sequences, max_new_tokens, **how)


@pytest.fixture
def policy(tiny_policy):
    return Counting(tiny_policy.model, tiny_policy.chat, "tiny")


def test_every_prompt_becomes_a_sample(policy, tmp_path):
    told = []
    cost = evaluate(policy, BENCHMARKS, OPTIONS, tmp_path, progress=lambda *step: told.append(step))
    samples = read_samples(tmp_path / "samples.jsonl")
    prompts = [(s.provenance.name, p) for s in BENCHMARKS for p in s]
    assert [(s.benchmark, s.prompt_id, s.prompt, s.label, s.partner) for s in samples] == [
        (name, p.id, p.text, p.label, p.partner) for name, p in prompts
    ]
    tokens = 0
    for sample in samples:
        [alone] = policy.generate(policy.encode([sample.prompt]), 6)
        assert (sample.completion, sample.finished) == (alone.text, alone.finished)
        [mass] = rejection_probability(policy, [sample.prompt], OPTIONS.openings)
        assert sample.rejection_probability == pytest.approx(mass, rel=1e-3)
        assert sample.verdict == KeywordJudge().judge(sample.prompt, sample.completion)
        tokens += len(policy.chat.encode(sample.prompt)) + alone.tokens
    assert len({s.completion for s in samples}) > 3
    assert (cost.steps, cost.tokens, cost.notes) == (PROMPTS, tokens, {"judge": "keywords"})
    what = "replies and rejection probabilities"
    assert [step[1:] for step in told if step[0] == what] == [(n, PROMPTS) for n in (0, 4, 8, 12, 13)]


def test_batch_size_and_order_do_not_change_the_replies(policy, tmp_path):
    # A float32 model on one thread; in lower precision a reply may flip with the batch that it stands in.
    found = {}
    for size, benchmarks in (
        (1, BENCHMARKS),
        (5, BENCHMARKS[::-1]),
        (64, [BENCHMARKS[0]]),
        (64, [BENCHMARKS[1]]),
    ):
        out = tmp_path / f"{size}-{len(found)}"
        evaluate(policy, benchmarks, OPTIONS.model_copy(update={"batch_size": size}), out)
        for s in read_samples(out / "samples.jsonl"):
            found.setdefault((s.benchmark, s.prompt_id), []).append(s)
    assert len(found) == PROMPTS
    for samples in found.values():
        assert len(samples) == 3
        assert len({(s.completion, s.finished, s.verdict) for s in samples}) == 1
        assert [s.rejection_probability for s in samples] == pytest.approx(
            [samples[0].rejection_probability] * 3, rel=1e-3
        )


@pytest.mark.parametrize("rejection", [True, False])
@pytest.mark.parametrize("stop", [4, 8])
def test_an_interrupted_evaluation_ends_with_the_same_bytes(policy, tmp_path, stop, rejection):
    options = OPTIONS.model_copy(update={"rejection": rejection})

    def interrupt(what, done, of):
        if what.startswith("replies") and done == stop:
            raise KeyboardInterrupt

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    cost = evaluate(policy, BENCHMARKS, options, whole)
    all_batches, policy.batches = policy.batches, 0
    with pytest.raises(KeyboardInterrupt):
        evaluate(policy, BENCHMARKS, options, broken, progress=interrupt)
    assert not (broken / "samples.jsonl").exists()
    assert evaluate(policy, BENCHMARKS, options, broken) == cost
    assert policy.batches == all_batches == 4
    assert (broken / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("log", ["completions.jsonl", "rejection.jsonl"])
def test_what_was_not_kept_is_made_again_and_nothing_is_kept_twice(policy, tmp_path, log):
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    samples = (tmp_path / "samples.jsonl").read_bytes()
    lines = (tmp_path / log).read_bytes().splitlines(keepends=True)
    assert len(lines) == PROMPTS
    (tmp_path / log).write_bytes(b"".join(lines[:8]))  # the other file has the third batch
    policy.batches = policy.prompts = 0
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    assert (policy.batches, policy.prompts) == (2, PROMPTS - 8)
    assert (tmp_path / "samples.jsonl").read_bytes() == samples
    for name in ("completions.jsonl", "rejection.jsonl"):
        assert len((tmp_path / name).read_bytes().splitlines()) == PROMPTS


def test_a_batch_that_was_cut_off_is_generated_again_as_a_whole(policy, tmp_path):
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    samples = (tmp_path / "samples.jsonl").read_bytes()
    log = tmp_path / "completions.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == PROMPTS
    log.write_bytes(b"".join(lines[:6]) + lines[6][:-9])  # in the middle of the second batch of four
    policy.batches = policy.prompts = 0
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    assert (policy.batches, policy.prompts) == (3, PROMPTS - 4)
    assert (tmp_path / "samples.jsonl").read_bytes() == samples
    assert len({row["key"] for _, row in read_json_lines(log)}) == PROMPTS
    policy.batches = 0
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    assert policy.batches == 0


def test_a_changed_text_is_not_taken_for_the_old_one(policy, tmp_path):
    [first, *others] = BENCHMARKS[1]
    evaluate(policy, [BENCHMARKS[1]], OPTIONS, tmp_path)
    changed = PromptSet([first.model_copy(update={"text": "Hi"}), *others], Provenance(name="benign"))
    evaluate(policy, [changed], OPTIONS, tmp_path)
    [alone] = policy.generate(policy.encode(["Hi"]), 6)
    assert read_samples(tmp_path / "samples.jsonl")[0].completion == alone.text


def test_replies_of_other_options_are_not_taken_for_those_that_are_asked_for(policy, tmp_path):
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path)
    longer = OPTIONS.model_copy(update={"max_new_tokens": 9})
    with pytest.raises(
        DataError, match=r"other options \(`max_new_tokens` 6, now 9\); name another directory"
    ):
        evaluate(policy, BENCHMARKS, longer, tmp_path)
    evaluate(policy, BENCHMARKS, longer, tmp_path / "longer")
    lengths = [
        {row["tokens"] for _, row in read_json_lines(folder / "completions.jsonl")}
        for folder in (tmp_path, tmp_path / "longer")
    ]
    assert max(lengths[0]) == 6
    assert max(lengths[1]) == 9


def test_the_same_prompt_may_stand_in_two_benchmarks(policy, tmp_path):
    evaluate(policy, [make_benign(2), make_benign(3).renamed("again")], OPTIONS, tmp_path)
    samples = read_samples(tmp_path / "samples.jsonl")
    assert [(s.benchmark, s.prompt_id) for s in samples] == [
        *(("benign", f"b{n}") for n in range(2)),
        *(("again", f"b{n}") for n in range(3)),
    ]
    assert [s.completion for s in samples[:2]] == [s.completion for s in samples[2:4]]


def test_without_rejection_probabilities(policy, tmp_path):
    evaluate(policy, BENCHMARKS, OPTIONS.model_copy(update={"rejection": False}), tmp_path)
    assert {s.rejection_probability for s in read_samples(tmp_path / "samples.jsonl")} == {None}
    assert not (tmp_path / "rejection.jsonl").exists()


def test_another_judge_and_the_built_in_openings(policy, tmp_path):
    class Strict:
        name, fingerprint = "strict", "1"

        def judge(self, prompt, completion):
            return Verdict.REFUSAL if "neighbor" in prompt else Verdict.UNSCORED

    options = EvaluateOptions(max_new_tokens=1)
    cost = evaluate(policy, [BENCHMARKS[0]], options, tmp_path, judge=Strict())
    assert cost.notes == {"judge": "strict"}
    samples = read_samples(tmp_path / "samples.jsonl")
    assert {(s.label.should_refuse, s.verdict) for s in samples} == {(True, "refusal"), (False, "unscored")}
    assert [s.rejection_probability for s in samples[:2]] == pytest.approx(
        rejection_probability(policy, [s.prompt for s in samples[:2]]), rel=1e-3
    )


class Half:
    """Has no verdict on the prompts of one label, and judges many at once."""

    name, fingerprint = "half", "1"

    def __init__(self):
        self.asked = []

    def judge(self, prompt, completion):
        raise AssertionError("one by one, though it can do many")

    def judge_many(self, exchanges):
        self.asked += exchanges
        unscored = Judgement(Verdict.UNSCORED, "no neighbours")
        return [unscored if "neighbor" in p else Judgement(Verdict.COMPLIANCE) for p, _ in exchanges]


def test_why_a_reply_is_unscored_is_kept(policy, tmp_path):
    judge = Half()
    evaluate(policy, BENCHMARKS, OPTIONS, tmp_path, judge=judge)
    samples = read_samples(tmp_path / "samples.jsonl")
    assert judge.asked == [(s.prompt, s.completion) for s in samples]
    assert {(s.label, s.verdict, s.unscored_reason) for s in samples} == {
        ("toxic", "unscored", "no neighbours"),
        ("seemingly_toxic", "compliance", None),
        ("benign", "compliance", None),
    }
    # As samples were written before there were reasons.
    rows = [row for _, row in read_json_lines(tmp_path / "samples.jsonl")]
    old = tmp_path / "old.jsonl"
    append_json_lines(old, [{k: v for k, v in row.items() if k != "unscored_reason"} for row in rows])
    assert read_samples(old) == [s.model_copy(update={"unscored_reason": None}) for s in samples]


def test_too_much_unscored_fails_after_the_samples_are_written(policy, tmp_path):
    def judged(limit):
        evaluate(policy, BENCHMARKS[::-1], OPTIONS, tmp_path, judge=Half(), unscored_limit=limit)

    with pytest.raises(
        DataError,
        match=r"50.0% of 10 judgements on the replies of tiny to pairs are unscored \(most often: no neighbours\)",
    ):
        judged(0.49)
    assert len(read_samples(tmp_path / "samples.jsonl")) == PROMPTS
    policy.batches = 0
    judged(0.5)
    assert policy.batches == 0


def test_unknown_openings_are_told_before_the_work(policy, tmp_path):
    with pytest.raises(DataError, match="There are no refusal openings for 'tlh'"):
        evaluate(policy, BENCHMARKS, OPTIONS.model_copy(update={"openings": "tlh"}), tmp_path)
    assert policy.batches == 0


def test_samples_of_another_form_are_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    with pytest.raises(DataError, match="There is no file"):
        read_samples(path)
    good = Sample(
        prompt_id="a",
        benchmark="b",
        label="toxic",
        prompt="c",
        completion="d",
        finished=True,
        verdict="refusal",
    )
    append_json_lines(path, [good.model_dump(mode="json")])
    assert read_samples(path) == [good]
    append_json_lines(path, [{"prompt": "c"}])
    with pytest.raises(DataError, match=r"samples\.jsonl, line 2, is not an evaluated sample"):
        read_samples(path)


def test_two_benchmarks_of_one_name_are_not_told_apart(policy, tmp_path):
    with pytest.raises(DataError, match="2 benchmarks are called 'pairs'; give each a name of its own"):
        evaluate(policy, [make_prompts(2, name="pairs"), make_prompts(3, name="pairs")], OPTIONS, tmp_path)
