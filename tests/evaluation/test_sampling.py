"""Several replies a prompt: drawn, judged each, and counted by share."""

import pytest
from scipy.stats import binomtest

from discernment.errors import DataError
from discernment.evaluation.evaluate import EvaluateOptions, Sampling, check_samples, evaluate
from discernment.evaluation.failures import outcomes
from discernment.evaluation.groups import Group, handled_rightly, is_scored
from discernment.evaluation.metrics import compare, score
from discernment.evaluation.sample import Draw, Sample, read_samples
from discernment.files import read_json_lines
from discernment.judges import Judge
from discernment.judges.verdict import Verdict
from discernment.prompts import Label
from discernment.statistics.intervals import wilson
from tiny import make_benign, make_prompts

LETTERS = {
    "r": Verdict.REFUSAL,
    "p": Verdict.PARTIAL_REFUSAL,
    "c": Verdict.COMPLIANCE,
    "u": Verdict.UNSCORED,
}
BENCHMARKS = [make_prompts(4, name="pairs"), make_benign(3)]
PROMPTS = sum(map(len, BENCHMARKS))
OPTIONS = EvaluateOptions(
    max_new_tokens=6,
    batch_size=4,
    openings=["Sorry"],
    sampling=Sampling(temperature=1.5, top_p=0.95, n=3, seed=2),
)


def drawn(*prompts: str, label: Label = Label.TOXIC) -> Group:
    samples = []
    for n, letters in enumerate(prompts):
        first, *further = (Draw(completion="!", finished=True, verdict=LETTERS[c]) for c in letters)
        about = {"prompt_id": str(n), "benchmark": "bench", "label": label, "prompt": "?"}
        samples.append(Sample(**about, **dict(first), further=tuple(further)))
    return Group("m", "bench", label, samples)


class Lengths(Judge):
    """What it says depends on the reply alone, and is not always the same."""

    name = "lengths"
    fingerprint = "lengths"

    def judge(self, prompt, completion):
        return Verdict.REFUSAL if len(completion) % 2 else Verdict.COMPLIANCE


def test_every_draw_is_kept_and_judged(tiny_policy, tmp_path):
    cost = evaluate(tiny_policy, BENCHMARKS, OPTIONS, tmp_path, judge=Lengths())
    samples = read_samples(tmp_path / "samples.jsonl")
    assert len(samples) == PROMPTS
    assert {len(s.further) for s in samples} == {2}
    assert sum(len({s.completion, *(d.completion for d in s.further)}) == 3 for s in samples) > PROMPTS / 2
    for sample in samples:
        for reply in (sample, *sample.further):
            assert reply.completion and (reply.verdict is Verdict.REFUSAL) == (len(reply.completion) % 2 == 1)
    rows = [row for _, row in read_json_lines(tmp_path / "completions.jsonl")]
    prompts = [len(tiny_policy.chat.encode(p.text)) for benchmark in BENCHMARKS for p in benchmark]
    assert cost.tokens == sum(prompts) + sum(d["tokens"] for r in rows for d in (r, *r["further"]))


def test_draws_do_not_depend_on_batches_or_interruptions(tiny_policy, tmp_path):
    evaluate(tiny_policy, BENCHMARKS, OPTIONS, tmp_path / "a", judge=Lengths())
    expected = (tmp_path / "a" / "samples.jsonl").read_bytes()
    lines = (tmp_path / "a" / "completions.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "completions.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:20])
    evaluate(tiny_policy, BENCHMARKS, OPTIONS, tmp_path / "b", judge=Lengths())
    assert (tmp_path / "b" / "samples.jsonl").read_bytes() == expected
    single = OPTIONS.model_copy(update={"batch_size": 1})
    evaluate(tiny_policy, BENCHMARKS[::-1], single, tmp_path / "c", judge=Lengths())
    again = {s.key: s for s in read_samples(tmp_path / "c" / "samples.jsonl")}
    for sample in read_samples(tmp_path / "a" / "samples.jsonl"):
        assert again[sample.key].completion == sample.completion
        assert again[sample.key].further == sample.further
    other = OPTIONS.model_copy(update={"sampling": Sampling(temperature=1.5, top_p=0.95, n=3, seed=3)})
    evaluate(tiny_policy, BENCHMARKS, other, tmp_path / "d", judge=Lengths())
    replies = [
        {d.completion for s in read_samples(tmp_path / name / "samples.jsonl") for d in (s, *s.further)}
        for name in "ad"
    ]
    assert len(replies[0] - replies[1]) > PROMPTS


def test_a_prompt_counts_with_the_share_of_its_replies():
    group = drawn("rrr", "rcp", "uur", "ccc", "uuu")
    assert [handled_rightly(s) for s in group.samples] == [1, pytest.approx(1 / 3), 1, 0, 0]
    assert [is_scored(s) for s in group.samples] == [True, True, True, True, False]
    found = score(group)
    assert found.value == pytest.approx((1 + 1 / 3 + 1 + 0) / 4)
    assert (found.scored, found.unscored, found.partial) == (4, 1, 1)
    assert found.unscored_replies == 2 + 3
    assert (found.low, found.high) == pytest.approx(tuple(wilson(7 / 3, 4)))
    harmless = drawn("rc", "cc", label=Label.SEEMINGLY_TOXIC)
    assert score(harmless).value == 0.75


def test_no_prompt_without_a_verdict_is_not_no_reply_without_one():
    found = score(drawn(*["ruuuuuuu"] * 24))
    assert (found.scored, found.unscored, found.unscored_replies) == (24, 0, 168)
    assert score(drawn("r", "u", "u")).unscored_replies == score(drawn("r", "u", "u")).unscored == 2


def test_two_methods_are_compared_by_shares():
    ours, theirs = drawn("rrrr", "rrcc", "rccc", "cccc", *["rrrc"] * 8), drawn(*["rrcc"] * 12)
    found = compare(ours, theirs)
    assert found.difference == pytest.approx((0.5 + 0 - 0.25 - 0.5 + 8 * 0.25) / 12)
    assert (found.only_method, found.only_against) == (9, 2)
    assert found.p_value == pytest.approx(binomtest(2, 11).pvalue)
    assert found.low < found.difference < found.high


def test_a_prompt_fails_where_most_of_its_replies_are_wrong():
    [mostly, half, never] = outcomes({"m": drawn("rcc", "rc", "rr").samples})
    assert (mostly.failed, half.failed, never.failed) == (["m"], [], [])


def test_every_reply_without_a_verdict_counts_towards_the_limit():
    samples = drawn("ru", "ru", "ru", "rr").samples
    check_samples(samples, 3 / 8, "m")
    with pytest.raises(DataError, match="m"):
        check_samples(samples, 0.37, "m")
