"""What is judged and shown is the answer; the thought is kept beside it, and one that never ends has no verdict."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.sample import Sample, read_samples
from discernment.evaluation.win_rate import win_rate
from discernment.files import read_json_lines
from discernment.judges import BatchJudge, Judgement, judge_all
from discernment.judges.verdict import Verdict
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.policies.rule import DecodingRule
from discernment.prompts import Label
from tiny import CHAT_TEMPLATE, make_prompts

OPENS_A_THOUGHT = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
)
THOUGHT, REFUSAL, ANSWER = "Sure, here is how, or not?", "I can't help with that.", "Sure, use the tool."
PROMPTS = make_prompts(2, name="pairs")


class Script(DecodingRule):
    """Says the same tokens whatever it is asked."""

    name: ClassVar[str] = "script"

    says: tuple[int, ...]

    def contexts(self, chat, prompt):
        return [chat.encode(prompt)]

    def combine(self, logits, step):
        return torch.full_like(logits[0], -torch.inf).index_fill(
            1, torch.tensor(self.says[min(step, len(self.says) - 1)]), 0.0
        )


class Recorder:
    """Takes everything for compliance, and keeps what it was asked."""

    name = fingerprint = "recorder"

    def __init__(self):
        self.asked = []

    def judge(self, prompt, completion):
        self.asked.append(completion)
        return Verdict.COMPLIANCE


class BatchRecorder(Recorder, BatchJudge):
    def judge_many(self, exchanges):
        return [Judgement(super(BatchRecorder, self).judge(*exchange)) for exchange in exchanges]


@pytest.fixture
def saying(tiny_policy, tokenizer):
    def make(reply: str, *, opened: bool, ended: bool = True) -> tuple[Policy, int]:
        chat = ChatFormat(tokenizer, thinking="on")
        if opened:
            changed = type(tokenizer)(
                tokenizer_object=tokenizer.backend_tokenizer,
                pad_token="<pad>",
                eos_token="<|im_end|>",
                additional_special_tokens=["<|im_start|>"],
            )
            changed.chat_template = OPENS_A_THOUGHT
            chat = ChatFormat(changed, thinking="on")
        ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
        rule = Script(says=(*ids, *[tokenizer.eos_token_id] * ended))
        return Policy(tiny_policy.model, chat, "scripted", rule), len(ids) + ended

    return make


def evaluated(policy: Policy, tokens: int, out, judge=None) -> tuple[list[Sample], list[dict]]:
    options = EvaluateOptions(max_new_tokens=tokens, batch_size=3, rejection=False)
    evaluate(policy, [PROMPTS], options, out, judge=judge)
    samples, kept = read_samples(out / "samples.jsonl"), list(read_json_lines(out / "completions.jsonl"))
    assert len(samples) == len(kept) == len(PROMPTS)
    return samples, [row for _, row in kept]


@pytest.mark.parametrize("judge", [Recorder, BatchRecorder])
@pytest.mark.parametrize("opened", [False, True])
def test_the_answer_is_judged_and_shown(saying, tmp_path, opened, judge):
    reply = f"{THOUGHT}\n</think>\n\n{REFUSAL}"
    policy, tokens = saying(reply if opened else f"<think>\n{reply}", opened=opened)
    samples, kept = evaluated(policy, tokens, tmp_path / "keywords")
    assert {(s.completion, s.verdict, s.finished) for s in samples} == {(REFUSAL, Verdict.REFUSAL, True)}
    assert {(row["completion"], row["thought"], row["tokens"]) for row in kept} == {
        (REFUSAL, THOUGHT, tokens)
    }
    asked = judge()
    evaluated(policy, tokens, tmp_path / "recorder", asked)
    assert asked.asked == [REFUSAL] * len(PROMPTS)


@pytest.mark.parametrize("judge", [None, Recorder, BatchRecorder])
@pytest.mark.parametrize("opened", [False, True])
def test_a_thought_that_never_ends_has_no_verdict(saying, tmp_path, opened, judge):
    policy, tokens = saying(THOUGHT if opened else f"<think>\n{THOUGHT}", opened=opened, ended=False)
    asked = judge() if judge else None
    samples, kept = evaluated(policy, tokens, tmp_path, asked)
    reason = f"the thought never ends within {tokens} tokens"
    assert {(s.verdict, s.unscored_reason, s.finished) for s in samples} == {
        (Verdict.UNSCORED, reason, False)
    }
    assert {s.completion for s in samples} == {f"<think>\n{THOUGHT}"}
    assert all("thought" not in row for row in kept)
    assert asked is None or asked.asked == []


def test_a_reply_without_a_thought_is_kept_as_before(saying, tmp_path):
    policy, tokens = saying(ANSWER, opened=False)
    samples, kept = evaluated(policy, tokens, tmp_path)
    assert {(s.completion, s.verdict) for s in samples} == {(ANSWER, Verdict.COMPLIANCE)}
    assert {frozenset(row) for row in kept} == {frozenset({"key", "completion", "finished", "tokens"})}
    one = samples[0].model_dump(mode="json")
    assert "thought" not in one


def test_all_judges_are_asked_about_answers_in_their_order():
    exchanges = [
        ("p", ANSWER),
        ("q", "<think>never"),
        ("r", f"[THINK]{THOUGHT}[/THINK]{REFUSAL}"),
        ("s", "analysisWe need to"),
        ("t", ""),
    ]
    for judge in (Recorder(), BatchRecorder()):
        said = judge_all(judge, exchanges)
        assert judge.asked == [ANSWER, REFUSAL, ""]
        unscored = Judgement(Verdict.UNSCORED, "the thought never ends")
        assert said == [Judgement(Verdict.COMPLIANCE) if n % 2 == 0 else unscored for n in range(5)]


def test_preferences_are_between_answers():
    class Longer:
        name = fingerprint = "longer"
        asked: ClassVar[list] = []

        def compare(self, prompt, a, b):
            self.asked.append((prompt, a, b))
            return "a" if len(a) > len(b) else "b"

    def samples(*completions: str) -> list[Sample]:
        return [
            Sample(
                prompt_id=str(n),
                benchmark="b",
                label=Label.BENIGN,
                prompt=f"p{n}",
                completion=completion,
                finished=True,
                verdict=Verdict.COMPLIANCE,
            )
            for n, completion in enumerate(completions)
        ]

    ours = samples(f"<think>{THOUGHT}</think>No.", "<think>never", "Yes, of course.")
    theirs = samples("Not now.", "Yes.", "Yes.")
    found = win_rate(ours, theirs, Longer(), method="ours", against="theirs")
    assert (found.wins, found.losses, found.unscored) == (1, 1, 1)
    assert (found.words, found.words_against, found.longer) == (2.0, 1.5, 1)
    assert sorted(Longer.asked) == [
        ("p0", "No.", "Not now."),
        ("p0", "Not now.", "No."),
        ("p2", "Yes, of course.", "Yes."),
        ("p2", "Yes.", "Yes, of course."),
    ]
