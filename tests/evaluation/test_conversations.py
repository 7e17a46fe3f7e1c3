"""Prompts with a system message and earlier turns: everything that speaks gets the same, and results keep them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discernment.diagnosis.separability import layer_states
from discernment.evaluation.ability import score_replies
from discernment.evaluation.attacks import attacks, with_completion_prefix
from discernment.evaluation.evaluate import EvaluateOptions, evaluate
from discernment.evaluation.inspect_export import export_inspect_task
from discernment.evaluation.sample import read_samples
from discernment.files import content_hash
from discernment.judges import KeywordJudge
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.policies.context import cut_left
from discernment.policies.policy import Policy
from discernment.policies.prompted import Prompted
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Conversation, PromptSet, Provenance, Turn, find_duplicates
from discernment.training.examples import encode_examples
from tiny import make_prompts

SYSTEM = "Be kind to all, and brief."
EARLIER = (Turn(role="user", content="How do I bake?"), Turn(role="assistant", content="Mix flour."))
PLAIN = make_prompts(3)
OPTIONS = EvaluateOptions(max_new_tokens=6, batch_size=4, openings=["Sorry", "I can't"])


def with_context(system: str | None, earlier: tuple[Turn, ...] = ()) -> PromptSet:
    changed = {"system": system, "earlier": earlier}
    return PromptSet((p.model_copy(update=changed) for p in PLAIN), PLAIN.provenance)


@pytest.fixture
def told(tiny_policy: Policy) -> Policy:
    """The same policy with the system message as its own."""
    return Policy(tiny_policy.model, tiny_policy.chat.with_system(SYSTEM), "told")


def test_a_prompt_s_own_system_message_is_read_as_a_policy_s(tiny_policy: Policy, told: Policy) -> None:
    own = with_context(SYSTEM)
    assert tiny_policy.encode(own.asked) == told.encode(PLAIN.texts) != tiny_policy.encode(PLAIN.texts)
    assert rejection_probability(tiny_policy, own.asked) == rejection_probability(told, PLAIN.texts)
    assert torch.equal(layer_states(tiny_policy, own), layer_states(told, PLAIN))
    kernels = [
        gradient_kernel(policy, asked, KernelOptions(k=3, noise_floor=False)).norms
        for policy, asked in ((tiny_policy, own.asked), (told, PLAIN.texts))
    ]
    assert np.array_equal(*kernels)
    replies = ["Sure, mix flour."] * len(PLAIN)
    ours, theirs = (
        score_replies(policy, policy, list(zip(asked, replies, strict=True)))
        for policy, asked in ((tiny_policy, own.asked), (told, PLAIN.texts))
    )
    assert all(np.array_equal(a.surprise, b.surprise) for a, b in zip(ours, theirs, strict=True))
    rows = [encode_examples(s, p.chat, 256)[:] for s, p in ((own, tiny_policy), (PLAIN, told))]
    assert rows[0] == rows[1]


def test_rules_and_attacks_keep_what_comes_before(tiny_policy: Policy, told: Policy) -> None:
    own = with_context(SYSTEM, EARLIER)
    ruled = Policy(tiny_policy.model, tiny_policy.chat, "ruled", Prompted(system="Help."))
    joined = tiny_policy.chat.with_system(f"Help.\n\n{SYSTEM}")
    bare = with_context(None, EARLIER)
    assert ruled.encode(own.asked) == [joined.encode(asked) for asked in bare.asked]
    begun = with_completion_prefix(tiny_policy)
    for asked, ids in zip(own.asked, begun.encode(own.asked), strict=True):
        assert ids[: len(tiny_policy.chat.encode(asked))] == tiny_policy.chat.encode(asked)
        assert len(ids) > len(tiny_policy.chat.encode(asked))
    changed = attacks()["leetspeak"].apply(own)
    assert [(p.system, p.earlier) for p in changed] == [(SYSTEM, EARLIER)] * len(own)
    assert changed.texts == attacks()["leetspeak"].apply(PLAIN).texts != PLAIN.texts


def test_only_the_last_turn_is_cut(tiny_policy: Policy) -> None:
    asked = Conversation(text="how " * 300, system=SYSTEM, earlier=EARLIER)
    cut = cut_left(tiny_policy, asked, 8)
    assert isinstance(cut, Conversation)
    assert (cut.system, cut.earlier) == (SYSTEM, EARLIER)
    assert asked.text.endswith(cut.text) and len(cut.text) < len(asked.text)
    assert len(tiny_policy.encode([cut])[0]) + 7 <= 256
    longer = asked.with_text(asked.text[-len(cut.text) - 4 :])
    assert len(tiny_policy.encode([longer])[0]) + 7 > 256


def test_results_keep_the_conversation(tiny_policy: Policy, told: Policy, tmp_path: Path) -> None:
    own = with_context(SYSTEM, EARLIER)
    for policy, prompts, name in ((tiny_policy, own, "own"), (told, PLAIN, "plain")):
        evaluate(policy, [prompts], OPTIONS, tmp_path / name)
    rows = [json.loads(line) for line in (tmp_path / "own/samples.jsonl").read_text().splitlines()]
    assert [row["system"] for row in rows] == [SYSTEM] * len(own)
    assert [row["earlier"] for row in rows] == [[turn.model_dump() for turn in EARLIER]] * len(own)
    assert not {"system", "earlier"} & set((tmp_path / "plain/samples.jsonl").read_text().split('"'))
    samples = read_samples(tmp_path / "own/samples.jsonl")
    assert [s.asked for s in samples] == own.asked
    for sample in samples:
        [alone] = tiny_policy.generate(tiny_policy.encode([sample.asked]), 6)
        assert sample.completion == alone.text
        assert sample.verdict == KeywordJudge().judge(sample.prompt, sample.completion)
        assert sample.whole.startswith(
            f"System: {SYSTEM}\n\nUser: How do I bake?\n\nAssistant: Mix flour.\n\nUser: "
        )
    assert len({s.completion for s in samples}) > 1
    export_inspect_task([own], tmp_path)
    exported = [json.loads(line) for line in (tmp_path / "over_refusal.jsonl").read_text().splitlines()]
    assert [row["input"] for row in exported] == [p.turns for p in own]
    assert [row["metadata"]["prompt"] for row in exported] == own.texts


def test_what_is_kept_of_one_conversation_is_not_taken_for_another(
    tiny_policy: Policy, tmp_path: Path
) -> None:
    for system in (SYSTEM, "Always refuse.", None):
        evaluate(tiny_policy, [with_context(system)], OPTIONS, tmp_path)
    kept = (tmp_path / "completions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in kept}) == len(kept) == 3 * len(PLAIN)


def test_other_conversations_are_other_prompts(tmp_path: Path) -> None:
    sets = [with_context(None), with_context(SYSTEM), with_context("Other."), with_context(SYSTEM, EARLIER)]
    assert len({s.fingerprint for s in sets}) == len(sets)
    fields = ("id", "text", "label", "category", "source", "partner", "frame", "keyword", "split", "response")
    before = [{name: getattr(p, name) for name in fields} for p in PLAIN]  # as it was without conversations
    assert sets[0].fingerprint == content_hash(before)
    for prompts in sets:
        prompts.to_jsonl(tmp_path / "a.jsonl")
        assert list(PromptSet.from_file(tmp_path / "a.jsonl")) == list(prompts)
    one, two = (PromptSet(s.prompts[:1], Provenance(name=str(n))) for n, s in enumerate(sets[1:3]))
    assert not [d for d in find_duplicates([one, two]) if d.likeness == "exact"]
    assert [d.likeness for d in find_duplicates([one, one.renamed("again")])] == ["exact"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4), st.none() | st.text())
def test_turns_say_it_all(said: list[str], system: str | None) -> None:
    roles = ("user", "assistant")
    talk = Conversation(
        text="last",
        system=system,
        earlier=tuple(
            Turn(role=roles[n % 2], content=text) for n, text in enumerate(said[: len(said) // 2 * 2])
        ),
    )
    assert [turn["content"] for turn in talk.turns if turn["role"] == "system"] == (
        [] if system is None else [system]
    )
    assert [turn["content"] for turn in talk.turns if turn["role"] != "system"] == [
        *said[: len(said) // 2 * 2],
        "last",
    ]
    assert (talk.asked == "last") == (system is None and len(said) < 2)
