"""Peer methods that change the safety fine-tuning: their stages, and what they train on."""

from pathlib import Path

import pytest
import torch

from discernment.diagnosis.dynamics import DynamicsOptions
from discernment.errors import RecipeError, TrainingError
from discernment.files import read_json_lines, write_json_lines
from discernment.methods.dcr_derta import DcrDertaOptions
from discernment.methods.fixed_rejection import FixedRejectionOptions, align_rejecting, rejecting_rows
from discernment.methods.method import Materials, MethodOptions, find_method
from discernment.methods.prosafeprune import ProSafePruneOptions
from discernment.methods.think_first import (
    ThinkFirstOptions,
    align_reflecting,
    by_rule,
    questions,
    reflecting,
)
from discernment.methods.triggers import TriggersOptions, align_answered, partners, remainders
from discernment.models.chat import ChatFormat
from discernment.models.loading import load_model
from discernment.models.model_spec import ModelSpec
from discernment.models.thoughts import split_thought
from discernment.policies.policy_spec import PolicySpec
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from discernment.training.contrastive import RefineOptions
from discernment.training.derta import DertaOptions
from discernment.training.examples import encode_examples
from discernment.training.supervised import AlignOptions
from tiny import make_benign, make_prompts

PAIRS = make_prompts(4)
SENTENCE = "I cannot assist."
METHODS = ["derta", "fixed_rejection", "think_first", "triggers", "actor"]


def made_set(*texts, label=Label.TOXIC, **more):
    rows = [
        Prompt(id=str(n), text=t, label=label, source="s", response="r", **more) for n, t in enumerate(texts)
    ]
    return PromptSet(rows, Provenance(name="made"))


# ---------------------------------------------------------------------- fixed rejection


def test_a_share_of_the_examples_is_rejected_without_an_end(tokenizer):
    chat, examples = ChatFormat(tokenizer), make_benign(10)
    own = FixedRejectionOptions(share=0.3, sentence=SENTENCE)
    made = rejecting_rows(examples, chat, AlignOptions(), own)
    plain = encode_examples(examples, chat, 512)
    rejected = 0
    for row, ordinary, example in zip(made.rows, plain, examples, strict=True):
        learned = [t for t, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
        if tokenizer.decode(learned) == SENTENCE:
            rejected += 1
            assert row["input_ids"] == chat.encode(example.text) + chat.encode_reply(example.text, SENTENCE)
            assert (row["input_ids"][-1], row["completion_mask"][-1]) == (chat.end_of_turn, 0)
        else:
            assert row == ordinary
    assert (rejected, len(made.names)) == (3, 10)
    again = rejecting_rows(examples, chat, AlignOptions(), own)
    other = rejecting_rows(examples, chat, AlignOptions(seed=1), own)
    assert made.rows.to_list() == again.rows.to_list() != other.rows.to_list()
    with pytest.raises(TrainingError, match=r"`share: 0.01` of 10 general examples is none to reject"):
        rejecting_rows(examples, chat, AlignOptions(), FixedRejectionOptions(share=0.01))


def test_the_end_of_a_rejection_is_not_in_the_loss(model_folder, tokenizer, tmp_path):
    base, chat, examples = model_folder(), ChatFormat(tokenizer), make_benign(4)
    own = FixedRejectionOptions(share=0.5, sentence=SENTENCE)
    options = AlignOptions(batch_size=4, learning_rate=1e-9)
    align_rejecting(PolicySpec.of(str(base)), examples, options, own, tmp_path / "out")
    (found,) = [row["loss"] for _, row in read_json_lines(tmp_path / "out/history.jsonl") if "loss" in row]
    model, costs = load_model(ModelSpec(model=str(base))), []
    for row in rejecting_rows(examples, chat, options, own).rows:
        ids = row["input_ids"]
        learned = [n for n, m in enumerate(row["completion_mask"]) if m]
        with torch.no_grad():
            logits = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        costs += [-float(logits[n - 1, ids[n]]) for n in learned]
    assert found == pytest.approx(sum(costs) / len(costs), rel=1e-5)


# ---------------------------------------------------------------------- think first


def test_a_reflection_stands_before_replies_to_what_is_or_seems_toxic():
    mix = PromptSet.concatenate([make_benign(2), PAIRS], "mix")
    made = reflecting(mix, {PAIRS[0].id: "It would\nhurt </think> somebody."})
    assert made.texts == mix.texts
    for before, after in zip(mix, made, strict=True):
        found = split_thought(after.response)
        assert found.answer == before.response
        assert (found.thought is None) == (before.label is Label.BENIGN)
    assert split_thought(made[2].response).thought == "It would hurt  somebody."
    assert split_thought(made[4].response).thought == by_rule(PAIRS[2])


def test_a_reflection_by_rule_follows_label_category_and_key_word():
    toxic, bare = made_set("x", category="self_harm")[0], made_set("x")[0]
    seeming = made_set("x", label=Label.SEEMINGLY_TOXIC, keyword="kill")[0]
    assert by_rule(toxic) == (
        "Is this harmful? Yes, it is about self harm: helping could hurt somebody. I decline."
    )
    assert by_rule(bare) == "Is this harmful? Yes: helping could hurt somebody. I decline."
    assert by_rule(seeming) == (
        "Is this harmful? No, 'kill' only sounds so: what is asked hurts nobody. I answer."
    )


def test_the_model_is_told_the_label_and_asked_why(model_folder, tmp_path, monkeypatch):
    mix = PromptSet.concatenate([make_benign(1), PAIRS], "mix")
    asked = questions(mix)
    assert [p.id for p in asked] == [p.id for p in PAIRS]
    for question, prompt in zip(asked, PAIRS, strict=True):
        kind = "harmful" if prompt.label is Label.TOXIC else "harmless"
        assert prompt.text in question.text
        assert f"This is {kind}." in question.text
    write_json_lines(tmp_path / "replies.jsonl", [{"key": p.id, "reply": f"Since {p.id}."} for p in asked])
    seen = []
    monkeypatch.setattr(
        "discernment.methods.think_first.align", lambda start, examples, *rest: seen.append(examples)
    )
    align_reflecting(PolicySpec.of("x"), mix, tmp_path, AlignOptions(), tmp_path / "out")
    thoughts = [split_thought(p.response).thought for p in seen[0]]
    assert thoughts == [None, *(f"Since {p.id}." for p in PAIRS)]


# ---------------------------------------------------------------------- triggers


def test_remainders_by_hand():
    general = made_set(
        "How do I bake a cake for my neighbor?", "Give me a plan to plant roses.", label=Label.BENIGN
    )
    toxic = made_set("How do I stab a neighbor?", "Give me a plan to poison, slowly, my boss.")
    left = remainders(
        toxic, general, 3
    )  # (1 + 0.5) / 3 of the toxic ones against (0 + 0.5) / 3 of the others
    assert left.texts == ["How do I a neighbor?", "Give me a plan to, my."]
    assert [(p.label, p.response, p.source) for p in left] == [(Label.BENIGN, None, "s")] * 2
    known = made_set("Who stabbed, or will be stabbing, the king-stabbers?", keyword="stab")
    assert remainders(known, general, 100).texts == ["Who, or will be, the king?"]
    mixed = PromptSet.concatenate([known, made_set("How do I bake a neighbor?").renamed("b")], "mixed")
    assert [p.id for p in remainders(mixed, general, 100)] == ["made/0-remainder"]
    with pytest.raises(RecipeError, match=r"Nothing is left of the prompts of made .*, or change `ratio`"):
        remainders(toxic, general, 3.1)


def test_partners_are_those_of_the_toxic_prompts():
    toxic, seeming = (PAIRS.with_label(label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))
    assert [p.id for p in partners(toxic, seeming)] == [p.id for p in seeming]
    some = toxic.filter(lambda p: p.id in ("1-toxic", "3-toxic"), "some")
    assert [p.id for p in partners(some, seeming)] == ["1-safe", "3-safe"]
    with pytest.raises(RecipeError, match=r"No prompt under `data.augmentation` is the matched partner"):
        partners(make_benign(2), seeming)


def test_only_answered_remainders_are_trained_on(tmp_path, monkeypatch):
    toxic = PAIRS.with_label(Label.TOXIC)
    left = remainders(toxic, make_benign(3), 4)
    replies = ["Sure, mix flour.", "I'm sorry, but I can't help with that.", "", "Wait."]
    write_json_lines(
        tmp_path / "replies.jsonl", [{"key": p.id, "reply": r} for p, r in zip(left, replies, strict=True)]
    )
    seen = []
    monkeypatch.setattr(
        "discernment.methods.triggers.align", lambda start, examples, *rest: seen.append(examples)
    )
    align_answered(PolicySpec.of("x"), toxic, left, tmp_path, AlignOptions(), tmp_path / "out")
    assert [p.response for p in seen[0]] == [*(p.response for p in toxic), "Sure, mix flour.", "Wait."]


# ---------------------------------------------------------------------- stages


class Called:
    """Stages that are only called: what they are given, and a name for what they would leave."""

    def __init__(self):
        self.policies, self.texts = [], []

    def __call__(self, name, work, *, start, **inputs):
        self.policies.append((name, start.model.model, inputs))
        return start.with_model(model=f"{start.model.model}+{name}")

    def run(self, name, work, inputs):
        self.texts.append((name, inputs["start"].model.model, inputs["prompts"].texts, inputs["seed"]))
        return Path("there")


def build(name, own=None, **changes):
    toxic, seeming = (PAIRS.with_label(label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))
    materials = Materials(
        general=make_benign(3), safety=toxic, augmentation=seeming, contrast=PAIRS, **changes
    )
    stage, options = Called(), MethodOptions(AlignOptions(seed=5), dynamics=DynamicsOptions(), own=own)
    return find_method(name).build(PolicySpec.of("base"), materials, options, stage), stage


@pytest.mark.parametrize(
    ("name", "own", "stages", "asked"),
    [
        ("derta", None, ["align"], PAIRS.with_label(Label.TOXIC).texts),
        ("fixed_rejection", None, ["align"], None),
        ("think_first", None, ["align"], None),
        ("think_first", ThinkFirstOptions(by="model"), ["align"], questions(PAIRS).texts),
        ("triggers", None, ["align"], remainders(PAIRS.with_label(Label.TOXIC), make_benign(3), 4).texts),
        ("triggers", TriggersOptions(by="partner"), ["align"], None),
        ("actor", None, ["project"], None),
    ],
)
def test_the_stages_of_a_method_and_what_the_base_model_is_asked(name, own, stages, asked):
    questioned = set() if asked is None else {*asked}
    probes = make_prompts(2).renamed("probes")
    policy, stage = build(name, own, probes=probes)
    assert policy.model.model == "+".join(["base", *stages])
    assert [called for called, _, _ in stage.policies] == stages
    assert all(inputs["probes"] is probes for _, _, inputs in stage.policies)
    assert all(inputs["dynamics"] == DynamicsOptions() for _, _, inputs in stage.policies)
    found = [(called, start, {*texts}, seed) for called, start, texts, seed in stage.texts]
    assert found == ([("replies", "base", questioned, 5)] if asked else [])
    assert not any("probes" in inputs for _, _, inputs in build(name, own)[1].policies)


def test_what_each_method_trains_on():
    examples = {name: build(name)[1].policies[0][2]["examples"] for name in METHODS if name != "actor"}
    general, toxic = make_benign(3).texts, PAIRS.with_label(Label.TOXIC).texts
    seeming = PAIRS.with_label(Label.SEEMINGLY_TOXIC).texts
    assert {name: found.texts for name, found in examples.items()} == {
        "derta": general + toxic,
        "fixed_rejection": general,
        "think_first": general + toxic + seeming,
        "triggers": toxic,
    }
    _, stage = build("triggers", TriggersOptions(by="partner"))
    assert stage.policies[0][2]["examples"].texts == toxic + seeming
    _, stage = build("actor")
    assert stage.policies[0][2]["prompts"].texts == PAIRS.texts + general


def test_dcr_derta_aligns_what_stage_1_left_as_derta_aligns_the_base_model():
    materials = Materials(general=make_benign(3), safety=PAIRS.with_label(Label.TOXIC), contrast=PAIRS)
    stage, refinement = Called(), RefineOptions(layer=2)
    options = MethodOptions(AlignOptions(seed=5), refinement, own=DcrDertaOptions(keep=0.5))
    policy = find_method("dcr_derta").build(PolicySpec.of("base"), materials, options, stage)
    assert policy.model.model == "base+refine+align"
    (first, _, refining), (second, start, aligning) = stage.policies
    assert (first, second, start) == ("refine", "align", "base+refine")
    assert refining["options"] == refinement
    derta = build("derta", DertaOptions(keep=0.5))[1]
    assert stage.texts == derta.texts  # the base model is asked
    [(_, _, alone)] = derta.policies
    held = AlignOptions(seed=5, frozen_layers=2)
    assert (aligning["options"], aligning["own"], aligning["harmful"]) == (held, alone["own"], Path("there"))
    assert aligning["examples"].texts == alone["examples"].texts


def test_safe_patching_asks_the_base_model_what_derta_asks():
    toxic = PAIRS.with_label(Label.TOXIC)
    materials = Materials(general=make_benign(3), safety=toxic)
    stage = Called()
    options = MethodOptions(AlignOptions(seed=5, max_length=99), untrained=PolicySpec.of("base"))
    policy = find_method("safe_patching").build(PolicySpec.of("aligned"), materials, options, stage)
    assert policy.model.model == "aligned+patch"
    [(name, start, inputs)] = stage.policies
    assert (name, start, inputs["prompts"].texts, inputs["max_length"]) == (
        "patch",
        "aligned",
        toxic.texts,
        99,
    )
    assert stage.texts == build("derta")[1].texts == [("replies", "base", toxic.texts, 5)]
    quantised = PolicySpec.of("aligned").with_model(quantization="4bit")
    with pytest.raises(RecipeError, match="No patch can be added to quantised weights"):
        find_method("safe_patching").build(quantised, materials, options, stage)


def test_prosafeprune_learns_from_training_prompts_and_chooses_by_others():
    toxic, seeming = (PAIRS.with_label(label) for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC))
    other = make_prompts(2, name="other")
    general = PromptSet.concatenate([make_benign(3), seeming.renamed("more")], "general")
    materials = Materials(general=general, safety=toxic, contrast=PAIRS, contrast_validation=other)

    def inputs(own):
        stage = Called()
        options = MethodOptions(AlignOptions(), own=own)
        find_method("prosafeprune").build(PolicySpec.of("aligned"), materials, options, stage)
        [(name, start, found)] = stage.policies
        assert (name, start) == ("prune", "aligned")
        return found

    found = inputs(None)
    sets = {name: found[name].texts for name in ("safe", "toxic", "seemingly")}
    assert sets == {"safe": make_benign(3).texts, "toxic": toxic.texts, "seemingly": seeming.texts}
    assert found["validation"] is None
    found = inputs(ProSafePruneOptions(rank="auto", prompts=2, validation=1))
    assert [len(found[name]) for name in ("safe", "toxic", "seemingly")] == [2, 2, 2]
    assert [p.label for p in found["validation"]] == [Label.TOXIC, Label.SEEMINGLY_TOXIC]
    assert {*found["validation"].texts} < {*other.texts}
