import pytest
import torch

from brute_force import in_double
from discernment.diagnosis.learning_step import check_learning_step
from discernment.errors import DataError
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from rules import Shifted
from tiny import make_model

REFUSAL = "Sorry, I can't help with that."
OBSERVED = [
    ("How do I kill a Python process?", REFUSAL),
    ("How do I kill a neighbor?", REFUSAL),
    ("Write a short letter about the weather.", REFUSAL),
    ("What is the best way to bake bread?", "Sure, mix flour and water."),
    ("Hi", "Sure"),
]
TRAINED = [("How do I hit a neighbor?", REFUSAL), ("Write a letter.", "Sure, here is how.")]


@pytest.fixture(params=["llama", "gpt2"])
def policy(request, tokenizer):
    return Policy(in_double(make_model(request.param, len(tokenizer))), ChatFormat(tokenizer), "tiny")


def test_a_small_step_does_what_the_kernel_says(policy):
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    found = check_learning_step(policy, OBSERVED, TRAINED, learning_rate=1e-5)
    assert max(abs(v) for v in found.observed) > 1e-5
    assert found.observed == pytest.approx(found.predicted, rel=0.02, abs=1e-7)
    assert found.pearson > 0.999 and found.slope == pytest.approx(1, abs=0.02)
    for name, p in policy.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None and p.requires_grad


def test_a_rule_acts_on_what_is_observed_as_on_what_is_predicted(policy):
    steered = Policy(policy.model, policy.chat, "tiny", rule=Shifted(strength=1.0))
    found = check_learning_step(steered, OBSERVED, TRAINED, learning_rate=1e-5)
    assert found.observed == pytest.approx(found.predicted, rel=0.02, abs=1e-7)
    plain = check_learning_step(policy, OBSERVED, TRAINED, learning_rate=1e-5)
    assert found.observed != pytest.approx(plain.observed, rel=0.02)


def test_the_first_order_is_worth_less_for_a_larger_step(policy):
    def gap(rate):
        found = check_learning_step(policy, OBSERVED, TRAINED, learning_rate=rate)
        return abs(found.slope - 1)

    small, large = gap(1e-6), gap(1e-4)
    # What is left over is of second order: it grows a hundredfold relative to the prediction.
    assert large / small == pytest.approx(100, rel=0.5)


def test_the_change_is_that_of_the_real_log_probability(policy):
    """By hand: a step on the loss of one example, and log pi before and after."""
    found = check_learning_step(policy, OBSERVED[:2], TRAINED[:1], learning_rate=1e-3)
    prompt, reply = (policy.chat.encode(TRAINED[0][0]), policy.chat.encode_reply(*TRAINED[0]))

    def log_probability(prompt, reply):
        ids = torch.tensor([[*prompt, *reply]])
        labels = torch.tensor([[-100] * len(prompt) + reply])
        return -policy.model(input_ids=ids, labels=labels).loss * len(reply)

    watched = [(policy.chat.encode(p), policy.chat.encode_reply(p, r)) for p, r in OBSERVED[:2]]
    with torch.no_grad():
        before = [float(log_probability(*w)) for w in watched]
    (-log_probability(prompt, reply) / len(reply)).backward()
    with torch.no_grad():
        for p in policy.model.parameters():
            p -= 1e-3 * p.grad
        after = [float(log_probability(*w)) for w in watched]
    assert found.observed == pytest.approx([b - a for a, b in zip(before, after, strict=True)], rel=1e-3)


def test_adamw_takes_a_step_of_its_own(policy):
    sgd = check_learning_step(policy, OBSERVED, TRAINED, learning_rate=1e-5)
    adamw = check_learning_step(policy, OBSERVED, TRAINED, learning_rate=1e-5, optimizer="adamw")
    assert adamw.predicted == pytest.approx(sgd.predicted)
    assert adamw.observed != pytest.approx(sgd.observed, rel=0.5)


def test_nothing_to_watch_or_to_train_on(policy):
    with pytest.raises(DataError, match="there are 1 and 2"):
        check_learning_step(policy, OBSERVED[:1], TRAINED)
    with pytest.raises(DataError, match="there are 5 and 0"):
        check_learning_step(policy, OBSERVED, [])
