"""Divergence and perplexity on replies equal brute force, and do not depend on batches or order."""

import math

import numpy as np
import pytest
import torch

import discernment.evaluation.ability as ability
from discernment.errors import DataError, ModelError
from discernment.evaluation.ability import measure_ability, score_replies
from discernment.models.chat import ChatFormat
from discernment.policies.policy import Policy
from discernment.prompts import Label, Prompt
from rules import Pushed
from tiny import make_benign, make_model

REPLIES = [
    "Sure, here is how.",
    "I'm sorry, but I can't help with that.",
    "Mix flour, water, salt and yeast, then wait for the weather.",
    "Yes",
]
EXCHANGES = [
    (f"Write a letter number {n} about {'the weather ' * (n % 3)}", REPLIES[n % 4]) for n in range(12)
]


def prompts(count=12):
    return [
        Prompt(id=str(n), text=text, label=Label.BENIGN, source="made", response=reply)
        for n, (text, reply) in enumerate(EXCHANGES[:count])
    ]


@pytest.fixture
def base(tiny_policy):
    return Policy(make_model("llama", len(tiny_policy.chat.tokenizer), seed=1), tiny_policy.chat, "base")


def alone(policy, prompt, reply):
    """Logits that predict the reply, from one unpadded pass over everything, and the reply's tokens."""
    start, tokens = policy.chat.encode(prompt), policy.chat.encode_reply(prompt, reply)
    with torch.inference_mode():
        logits = policy.model(torch.tensor([start + tokens])).logits[0]
    return logits[len(start) - 1 : -1], torch.tensor(tokens)


def test_equals_brute_force(tiny_policy, base):
    scores = score_replies(tiny_policy, base, EXCHANGES, batch_size=5)
    assert len({len(s.kl) for s in scores}) > 2
    for (prompt, reply), found in zip(EXCHANGES, scores, strict=True):
        (ours, tokens), (theirs, _) = (alone(p, prompt, reply) for p in (tiny_policy, base))
        kl = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="none").sum(-1)
        assert found.kl == pytest.approx(kl.numpy(), rel=1e-4)
        assert found.kl.min() > 0.01
        surprise = torch.nn.functional.cross_entropy(ours, tokens, reduction="none")
        assert found.surprise == pytest.approx(surprise.numpy(), rel=1e-4)
        assert found.surprise_base == pytest.approx(
            torch.nn.functional.cross_entropy(theirs, tokens, reduction="none").numpy(), rel=1e-4
        )


def test_perplexity_is_that_of_transformers_own_loss(tiny_policy, base):
    nats, tokens = 0.0, 0
    for prompt, reply in EXCHANGES:
        start, said = tiny_policy.chat.encode(prompt), tiny_policy.chat.encode_reply(prompt, reply)
        labels = torch.tensor([[-100] * len(start) + said])
        with torch.inference_mode():
            loss = tiny_policy.model(input_ids=torch.tensor([start + said]), labels=labels).loss
        nats += float(loss) * len(said)
        tokens += len(said)
    found = measure_ability(tiny_policy, base, prompts(), batch_size=4)
    assert (found.prompts, found.tokens) == (12, tokens)
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found.ratio == pytest.approx(found.perplexity / found.perplexity_base)
    assert found.perplexity_low < found.perplexity < found.perplexity_high
    assert found.ratio_low < found.ratio < found.ratio_high
    assert found.kl_low < found.kl < found.kl_high
    # the paired interval of the ratio is narrower than what the two perplexities alone would allow
    assert found.ratio_high / found.ratio_low < (found.perplexity_high / found.perplexity_low) ** 2


def test_hand_worked_values(tiny_policy):
    """With a head of zeros a model says the same everywhere: a uniform one, and one that prefers a token e-fold."""

    def constant(bias):
        model = make_model("llama", len(tiny_policy.chat.tokenizer), tie_word_embeddings=False)
        head = torch.nn.Linear(32, len(tiny_policy.chat.tokenizer))
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()[0] = bias
        model.set_output_embeddings(head)
        return Policy(model, tiny_policy.chat, f"bias {bias}")

    v = len(tiny_policy.chat.tokenizer)
    z = v - 1 + math.e
    found = measure_ability(constant(1.0), constant(0.0), prompts())
    assert found.perplexity_base == pytest.approx(v, rel=1e-5)
    assert found.perplexity == pytest.approx(z, rel=1e-5)  # token 0 is padding and never said
    assert found.kl == pytest.approx(math.log(z) - math.log(v) - 1 / v, rel=1e-2)
    assert found.kl_low == pytest.approx(found.kl) == found.kl_high
    other = measure_ability(constant(0.0), constant(1.0), prompts())
    assert other.kl == pytest.approx(math.e / z - math.log(z) + math.log(v), rel=1e-2)


def test_a_model_beside_itself(tiny_policy):
    found = measure_ability(tiny_policy, tiny_policy, prompts())
    assert (found.kl, found.kl_low, found.kl_high) == (0, 0, 0)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (1, 1, 1)
    assert found.perplexity > 1


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batches_and_order_do_not_matter(tiny_policy, base, size):
    expected = score_replies(tiny_policy, base, EXCHANGES)
    order = np.random.default_rng(size).permutation(len(EXCHANGES))
    found = score_replies(tiny_policy, base, [EXCHANGES[n] for n in order], batch_size=size)
    for place, n in enumerate(order):
        for a, b in zip(found[place], expected[n], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_large_vocabularies_make_small_batches(tiny_policy, base, monkeypatch):
    done = []
    expected = score_replies(tiny_policy, base, EXCHANGES, progress=done.append)
    assert done == [12]
    longest = max(len(s.kl) for s in expected) + 1
    monkeypatch.setattr(ability, "LOGITS_AT_ONCE", 2 * longest * len(tiny_policy.chat.tokenizer))
    done.clear()
    found = score_replies(tiny_policy, base, EXCHANGES, progress=done.append)
    assert sum(done) == 12 and done[0] == 2 and max(done) > 2
    assert np.concatenate([s.kl for s in found]) == pytest.approx(
        np.concatenate([s.kl for s in expected]), rel=1e-4
    )


def test_a_decoding_rule_is_followed(tiny_policy, base):
    pushed = Policy(tiny_policy.model, tiny_policy.chat, "pushed", Pushed())
    found = score_replies(pushed, base, EXCHANGES[:2])
    careful = Policy(tiny_policy.model, tiny_policy.chat.with_system("Be careful."), "careful")
    for exchange, scored in zip(EXCHANGES, found, strict=False):
        plain, other, theirs = (alone(p, *exchange)[0] for p in (tiny_policy, careful, base))
        steps = torch.arange(len(plain))[:, None]
        ours = plain - (2 + steps) * other
        kl = torch.nn.functional.kl_div(ours.log_softmax(-1), theirs.softmax(-1), reduction="none").sum(-1)
        assert scored.kl == pytest.approx(kl.numpy(), rel=1e-3)


def test_frames_are_drawn_as_one(tiny_policy, base):
    framed = [p.model_copy(update={"frame": str(n % 6)}) for n, p in enumerate(prompts())]
    found = measure_ability(tiny_policy, base, framed)
    assert found.kl > 0
    assert {found.kl_low, found.kl_high, found.perplexity_low, found.ratio_high} == {None}


def test_what_cannot_be_measured_is_said(tiny_policy, base, tokenizer):
    with pytest.raises(DataError, match="None of the prompts comes with a response"):
        measure_ability(tiny_policy, base, [p.model_copy(update={"response": None}) for p in make_benign(2)])
    spoken_to = Policy(base.model, ChatFormat(tokenizer, "plain"), "plainly")
    with pytest.raises(ModelError, match="plainly turn the same exchange into different tokens"):
        measure_ability(tiny_policy, spoken_to, make_benign(2))
    larger = Policy(make_model("llama", len(tokenizer) + 8), base.chat, "larger")
    with pytest.raises(ModelError, match="vocabularies of different size"):
        measure_ability(larger, base, make_benign(2))
    with torch.no_grad():
        base.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="base gives logits that are not finite"):
        measure_ability(tiny_policy, base, make_benign(2))
