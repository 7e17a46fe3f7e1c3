"""What the stages of other systems find on a tiny model that refuses too much, against means and searches by hand."""

import pytest
import torch

from discernment.diagnosis.separability import layer_states, recommend_layer, separability
from discernment.files import read_json
from discernment.methods.scans import best_threshold, find_vectors
from discernment.methods.surgical import find_false_refusal, fold, template_tail
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rejection import rejection_probability
from discernment.policies.surgical import Surgical
from discernment.prompts import Label, PromptSet
from taught import taught_model
from tiny import LAYERS, make_benign, make_prompts

PAIRS, BENIGN = make_prompts(16), make_benign(16)
TOXIC, SEEMINGLY = PAIRS.with_label(Label.TOXIC), PAIRS.with_label(Label.SEEMINGLY_TOXIC)


def first(prompts, count):
    return PromptSet(prompts[:count] if count > 0 else prompts[count:], prompts.provenance)


@pytest.fixture(scope="module")
def start(tokenizer, tmp_path_factory):
    """A policy that refuses toxic and seemingly toxic prompts, and answers about the weather."""
    exchanges = [(p.text, "I cannot") for p in PAIRS] + [(p.text, "Sure") for p in BENIGN]
    folder = taught_model(tmp_path_factory.mktemp("refusing"), tokenizer, exchanges)
    policy = Policy.load(str(folder))
    assert min(rejection_probability(policy, PAIRS.texts)) > 0.8
    assert max(rejection_probability(policy, BENIGN.texts)) < 0.2
    return PolicySpec.of(str(folder))


def last_states(policy, prompts, ends=("",)):
    """States at the end of prompts and of what stands behind them: `[ends, layers, prompts, hidden]`."""
    found = []

    def keep(module, given, out):
        found.append((out[0] if isinstance(out, tuple) else out)[0, -1])

    handles = [layer.register_forward_hook(keep) for layer in policy.model.model.layers]
    with torch.no_grad():
        for end in ends:
            behind = policy.chat.encode_opening(end) if end else []
            for prompt in prompts:
                policy.model(torch.tensor([policy.chat.encode(prompt.text) + behind]))
    for handle in handles:
        handle.remove()
    return torch.stack(found).unflatten(0, (len(ends), len(prompts), LAYERS)).transpose(1, 2)


def mean_cosine(moved, reference):
    """Over the layers from the second on, the first that is steered of four."""
    cosines = [float(torch.cosine_similarity(m, r, dim=0)) for m, r in zip(moved, reference, strict=True)]
    return sum(cosines[1:]) / (LAYERS - 1)


def test_scans_finds_vectors_and_a_threshold(start, tmp_path):
    anchors = PromptSet.concatenate([first(TOXIC, 10), first(BENIGN, 10)], "anchors")
    rule = RuleSpec(name="scans", options={"strength": 3.0})
    cost = find_vectors(start, anchors, None, rule, tmp_path)
    policy = Policy.load(PolicySpec.read(tmp_path))
    tensors = policy.rule.tensors
    plain = Policy.load(start)
    (toxic, sure), (benign, fine) = (last_states(plain, first(s, 10), ("", "Sure")) for s in (TOXIC, BENIGN))
    difference = toxic.mean(1) - benign.mean(1)
    expected = difference / difference.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(tensors["vectors"], expected, atol=1e-4, rtol=1e-3)
    moved, reference = toxic - sure, (toxic - sure).mean(1)
    torch.testing.assert_close(tensors["reference"], reference, atol=1e-4, rtol=1e-3)
    without = [torch.cat([moved[:, :n], moved[:, n + 1 :]], dim=1).mean(1) for n in range(10)]
    alike = [mean_cosine(moved[:, n], without[n]) for n in range(10)]
    others = [mean_cosine((benign - fine)[:, n], reference) for n in range(10)]
    assert max(others) < min(alike)
    assert float(tensors["threshold"]) == pytest.approx((max(others) + min(alike)) / 2, abs=1e-5)
    assert cost.notes["balanced_accuracy"] == 1
    assert cost.notes["threshold"] == pytest.approx(float(tensors["threshold"]), abs=1e-4)
    held_out = [first(TOXIC, -6), first(BENIGN, -6)]
    strengths = [policy.rule.strengths(policy, policy.encode(s.asked)).tolist() for s in held_out]
    assert strengths == [[1.0] * 6, [-1.0] * 6]
    policy.rule = policy.rule.model_copy(update={"threshold": -1.0, "strength": 8.0})  # all look toxic
    assert (
        min(rejection_probability(policy, BENIGN.texts))
        > 0.4
        > max(rejection_probability(plain, BENIGN.texts))
    )
    policy.rule = policy.rule.model_copy(update={"threshold": 1.0})  # none does
    answered = rejection_probability(policy, SEEMINGLY.texts)
    assert max(answered) < 0.6 < min(rejection_probability(plain, SEEMINGLY.texts))


def test_scans_tunes_on_other_prompts_where_there_are_any(start, tmp_path):
    anchors = PromptSet.concatenate([first(TOXIC, 8), first(BENIGN, 8)], "anchors")
    tuning = PromptSet.concatenate([first(TOXIC, -6), first(SEEMINGLY, -6)], "tuning")
    cost = find_vectors(start, anchors, tuning, RuleSpec(name="scans"), tmp_path)
    rule = Policy.load(PolicySpec.read(tmp_path)).rule
    policy = Policy.load(start)
    taken = rule.strengths(policy, policy.encode(tuning.asked)) > 0
    toxic = torch.tensor([p.label is Label.TOXIC for p in tuning])
    accuracy = (taken[toxic].float().mean() + (~taken[~toxic]).float().mean()) / 2
    assert cost.notes["balanced_accuracy"] == pytest.approx(float(accuracy), abs=1e-4)
    assert cost.notes["tuned_on"] == len(tuning)
    assert accuracy > 0.5


def test_the_best_threshold_lies_between_two_prompts():
    likeness = torch.tensor([0.9, 0.8, 0.4, 0.6, 0.2, 0.1])
    toxic = torch.tensor([True, True, True, False, False, False])
    # above 0.6: 2 of 3 and 3 of 3; above 0.2: 3 of 3 and 2 of 3, which is as good; the lower one is found first
    threshold, accuracy = best_threshold(likeness, toxic)
    assert threshold == pytest.approx(0.3)
    assert accuracy == pytest.approx(5 / 6)
    threshold, accuracy = best_threshold(likeness, ~toxic)  # as bad as it gets: all on one side
    assert accuracy == pytest.approx(0.5)
    assert best_threshold(torch.tensor([0.5, 0.7]), torch.tensor([False, True])) == (pytest.approx(0.6), 1)


def surgical(start, out, validation, **options):
    return find_false_refusal(
        start=start,
        toxic=first(TOXIC, 8),
        benign=first(BENIGN, 8),
        seemingly=first(SEEMINGLY, 8),
        validation=validation,
        harmless=first(BENIGN, -6),
        rule=RuleSpec(name="surgical", options=options),
        out=out,
    )


def test_surgical_takes_the_place_that_leaves_the_least_refusal(start, tmp_path):
    validation = first(SEEMINGLY, -6)
    cost = surgical(start, tmp_path, validation, orthogonal=0.3, positions=1)
    plain, policy = Policy.load(start), Policy.load(PolicySpec.read(tmp_path))
    toxic, benign, seemingly = (
        last_states(plain, first(s, 8))[0].mean(1) for s in (TOXIC, BENIGN, SEEMINGLY)
    )
    asked = plain.encode(first(BENIGN, -6).asked)
    before = plain.next_token_logits(asked).log_softmax(-1)
    scores, kl = [], []
    for layer in range(LAYERS - 1):  # those below 80 % of the depth
        tensors = {"false_refusal": (seemingly - benign)[layer], "harm": (toxic - benign)[layer]}
        steered = Policy(plain.model, plain.chat, "p", Surgical(orthogonal=0.3).with_tensors(tensors))
        mass = torch.tensor(rejection_probability(steered, validation.texts))
        scores.append(float((mass / (1 - mass)).log().mean()))
        after = steered.next_token_logits(asked).log_softmax(-1)
        kl.append(float(torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean")))
    near = [n for n in range(LAYERS - 1) if kl[n] <= 0.2]
    best = min(near, key=scores.__getitem__) if near else min(range(LAYERS - 1), key=kl.__getitem__)
    assert (cost.notes["layer"], cost.notes["position"]) == (best + 1, -1)
    assert (cost.notes["within_divergence"], cost.notes["tried"]) == (len(near), LAYERS - 1)
    assert cost.notes["refusal_score"] == pytest.approx(scores[best], abs=1e-2)
    assert cost.notes["divergence"] == pytest.approx(kl[best], abs=1e-3)
    found = policy.rule.tensors
    torch.testing.assert_close(found["harm"], (toxic - benign)[best], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found["false_refusal"], (seemingly - benign)[best], atol=1e-4, rtol=1e-3)


def test_surgical_tries_every_token_of_the_template(start, tmp_path):
    cost = surgical(start, tmp_path, first(SEEMINGLY, -6), orthogonal=0.3)
    chat = Policy.load(start).chat
    tail = chat.tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert template_tail(chat) == len(tail) > 3
    assert cost.notes["tried"] == (LAYERS - 1) * len(tail)


def test_surgical_without_validation_prompts_takes_the_layer_of_ablated(start, tmp_path):
    cost = surgical(start, tmp_path, None)
    both = PromptSet.concatenate([first(TOXIC, 8), first(BENIGN, 8)], "both")
    expected = recommend_layer(separability(layer_states(Policy.load(start), both), both))
    assert (cost.notes["layer"], cost.notes["position"]) == (expected.layer, -1)
    assert cost.notes["reason"] == expected.reason


def test_surgical_learns_from_what_is_refused_and_what_is_answered(start, tmp_path):
    mixed = PromptSet.concatenate([first(SEEMINGLY, 4), first(BENIGN, 5).renamed("b")], "mixed")
    cost = find_false_refusal(start, TOXIC, mixed, mixed, None, BENIGN, RuleSpec(name="surgical"), tmp_path)
    assert cost.notes["prompts"] == {"toxic": len(TOXIC), "benign": 5, "seemingly": 4}


def test_a_folded_direction_leaves_weights_that_act_the_same(start, tmp_path):
    (tmp_path / "found").mkdir()
    (tmp_path / "fold").mkdir()
    surgical(start, tmp_path / "found", None, coefficient=0.9)
    steered = PolicySpec.read(tmp_path / "found")
    fold(start, steered, tmp_path / "fold")
    folded = PolicySpec.read(tmp_path / "fold")
    assert (folded.rule, folded.adapters) == (None, ())
    assert read_json(tmp_path / "fold/policy.json")["model"]["model"] == "./model"
    one, other, plain = (Policy.load(spec) for spec in (steered, folded, start))
    texts = PAIRS.texts[:6]
    expected = rejection_probability(one, texts)
    assert rejection_probability(other, texts) == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(rejection_probability(plain, texts), rel=1e-2)
    said = [c.text for c in one.generate(one.encode(texts), 5)]
    assert [c.text for c in other.generate(other.encode(texts), 5)] == said
