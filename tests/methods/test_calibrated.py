"""Calibrated refusals: the shift against a search by hand, and what the policy then says against the model's own logits."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discernment.errors import DataError, ModelError, RecipeError
from discernment.evaluation.attacks import with_completion_prefix
from discernment.files import read_json
from discernment.methods.calibrated import calibrate, shift_for
from discernment.methods.method import Materials, MethodOptions, find_method
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rejection import OpeningTrie, read_once, rejection_probability
from discernment.policies.rule import find_rule
from discernment.prompts import Label, PromptSet
from discernment.training.supervised import AlignOptions
from taught import taught_model
from tiny import make_benign, make_prompts

PAIRS, BENIGN = make_prompts(16), make_benign(16)
TOXIC = PAIRS.with_label(Label.TOXIC)
OPENINGS = ["I cannot", "Sorry"]


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory):
    """A policy that refuses most prompts of pairs, some more surely than others."""
    exchanges = [(p.text, "I cannot" if n % 3 else "Sure") for n, p in enumerate(PAIRS)]
    exchanges += [(p.text, "Sure") for p in BENIGN]
    folder = taught_model(tmp_path_factory.mktemp("refusing"), tokenizer, exchanges)
    return PolicySpec.of(str(folder))


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.2, 0.5, 0.75, 0.9, 0.95, 0.99]),
)
def test_the_shift_refuses_the_share_and_no_more_than_it_has_to(eighths, refused):
    margins = torch.tensor(eighths) / 8  # bfloat16 has ties like these
    counts = [sum(m >= cut for m in eighths) for cut in eighths]
    least = min(count for count in counts if count >= refused * len(eighths) - 1e-9)
    assert int((margins + shift_for(margins, refused) > 0).sum()) == least


@pytest.mark.parametrize("refused", [0.25, 0.5, 0.9])
def test_as_many_replies_begin_with_a_refusal_as_was_asked_for(start, tmp_path, monkeypatch, refused):
    monkeypatch.setattr("discernment.methods.calibrated.load_openings", lambda language: OPENINGS)
    rule = RuleSpec(name="calibrated", options={"refused": refused})
    cost = calibrate(start, TOXIC, rule, tmp_path)
    policy, plain = Policy.load(PolicySpec.read(tmp_path)), Policy.load(start)
    begins = {plain.chat.encode_opening(opening)[0] for opening in OPENINGS}
    assert len(begins) == 2
    asked = [*TOXIC, *BENIGN]
    sequences = policy.encode([p.text for p in asked])
    found = policy.generate(sequences, 3)
    expected = []
    for prompt in asked:
        ids = plain.chat.encode(prompt.text)
        with torch.no_grad():
            logits = plain.model(torch.tensor([ids])).logits[0, -1].double()
        for token in begins:
            logits[token] += policy.rule.tensors["shift"].double().item()
        expected.append(int(logits.argmax()))
    assert [reply.ids[0] for reply in found] == expected
    begun = [reply.ids[0] in begins for reply in found[: len(TOXIC)]]
    assert sum(begun) / len(TOXIC) == pytest.approx(cost.notes["begun_after"], abs=1e-4)
    assert refused <= cost.notes["begun_after"] < refused + 0.2
    before = [reply.ids[0] in begins for reply in plain.generate(plain.encode(TOXIC.texts), 1)]
    assert sum(before) / len(TOXIC) == pytest.approx(cost.notes["begun_before"], abs=1e-4)
    # Behind the first token the model is as it was.
    replies = [reply.ids for reply in found]
    for ours, theirs in zip(
        policy.reply_logits(sequences, replies),
        plain.reply_logits([list(s) for s in sequences], replies),
        strict=True,
    ):
        assert not torch.equal(ours[0], theirs[0])
        assert torch.allclose(ours[1:], theirs[1:], atol=1e-4)


def test_the_shift_acts_where_the_reply_begins_and_nowhere_behind():
    tensors = {"tokens": torch.tensor([1, 3]), "shift": torch.tensor([2.0])}
    rule = find_rule("calibrated", {}).with_tensors(tensors)
    logits = torch.zeros(1, 2, 5)
    assert rule.combine(logits, 0).tolist() == [[0, 2, 0, 2, 0]] * 2
    assert not rule.combine(logits, 1).any()
    assert not rule.begun().combine(logits, 0).any()
    assert not logits.any()
    with pytest.raises(RecipeError, match="needs a tensor `shift`"):
        rule.with_tensors({"tokens": torch.tensor([1])})


@pytest.mark.parametrize("shift", [-3.0, 2.0])
def test_the_rejection_probability_is_what_the_shift_makes_of_it(start, shift):
    plain = Policy.load(start)
    tokens = torch.tensor(sorted({plain.chat.encode_opening(opening)[0] for opening in OPENINGS}))
    rule = find_rule("calibrated", {}).with_tensors({"tokens": tokens, "shift": torch.tensor([shift])})
    policy = copy.copy(plain)
    policy.rule = rule
    mass = plain.next_token_logits(plain.encode(PAIRS.texts)).double().softmax(-1)[:, tokens].sum(1)
    before = torch.tensor(rejection_probability(plain, PAIRS.texts, OPENINGS), dtype=torch.float64)
    grown = torch.tensor(shift, dtype=torch.float64).exp()
    expected = (grown * before / (1 + (grown - 1) * mass)).tolist()
    assert rejection_probability(policy, PAIRS.texts, OPENINGS) == pytest.approx(expected, rel=1e-4)
    together, _ = read_once(policy, PAIRS.texts, OpeningTrie.from_openings(OPENINGS, policy.chat), 2)
    assert together == pytest.approx(expected, rel=1e-4)
    # Behind a beginning that another has written there is no first token left.
    ours, theirs = (
        rejection_probability(with_completion_prefix(of, "Sure,"), PAIRS.texts, OPENINGS)
        for of in (policy, plain)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
    with pytest.raises(ModelError, match=r"'calibrated', which .* or changes what is chosen"):
        policy.check_one_model("The kernel", policy.encode(PAIRS.texts))


def test_what_it_cannot_be_found_by(start, tmp_path):
    method, options = find_method("calibrated"), MethodOptions(AlignOptions())
    with pytest.raises(RecipeError, match=r"'calibrated' needs prompts under `data\.contrast_validation`"):
        method.build(PolicySpec.of("m"), Materials(), options, None)
    with pytest.raises(DataError, match="toxic"):
        method.build(PolicySpec.of("m"), Materials(contrast_validation=BENIGN), options, None)
    with pytest.raises(RecipeError, match="'calibrated' cannot take `refused`"):
        find_rule("calibrated", {"refused": 1})
    with pytest.raises(DataError, match="no refusal openings for 'xx'"):
        method.build(PolicySpec.of("m"), Materials(), replace(options, rule={"language": "xx"}), None)
    long = PromptSet([p.model_copy(update={"text": "kill " * 900}) for p in TOXIC[:2]], TOXIC.provenance)
    with pytest.raises(DataError, match="kill kill"):
        calibrate(start, long, RuleSpec(name="calibrated"), tmp_path)
    policy = Policy.load(start)
    policy.chat.__dict__["lead"] = [1]
    policy.rule = find_rule("calibrated", {})
    with pytest.raises(RecipeError, match="the template writes something before every reply"):
        policy.encode(PAIRS.texts)


def test_the_stage_leaves_what_it_found(start, tmp_path):
    calibrate(start, TOXIC, RuleSpec(name="calibrated"), tmp_path)
    rule = PolicySpec.read(tmp_path).rule
    assert read_json(tmp_path / "policy.json")["rule"]["name"] == rule.name == "calibrated"
    assert rule.load().tensors.keys() == {"tokens", "shift"}
