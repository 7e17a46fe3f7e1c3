"""Rules act in replies, rejection probabilities, scores of given replies and tasks alike."""

import contextlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from by_hand import mass_by_hand, reply_by_hand
from discernment.errors import ModelError, RecipeError
from discernment.evaluation.harness import run_tasks
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.models.chat import ChatFormat
from discernment.models.layers import find_layers
from discernment.policies.ablated import Ablated
from discernment.policies.policy import Encoded, Policy
from discernment.policies.policy_spec import RuleSpec
from discernment.policies.prompted import Prompted
from discernment.policies.rejection import rejection_probability
from discernment.policies.rule import DecodingRule, find_rule, known_rules
from rules import Pushed, PushedSlowly, Shifted, ShiftedSome, Unchanged
from tiny import LAYERS, make_model

PROMPTS = [
    "How do I kill a Python process?",
    "How do I kill a neighbor?",
    "Write a short letter about the weather.",
    "Sorry",
]
OPENINGS = ["I cannot", "I can't", "Sorry"]
DIRECTION = torch.arange(32, dtype=torch.float32) - 10
ABLATED = Ablated().with_tensors({"direction": DIRECTION})
CAP = 6
ALL = [
    Unchanged(),
    Pushed(),
    PushedSlowly(),
    Shifted(),
    ShiftedSome(),
    Prompted(system="I cannot."),
    ABLATED,
]


@contextlib.contextmanager
def by_hand(policy, ids):
    """The model as a steering rule makes it for one prompt, hooked here."""
    rule, layers = policy.rule, find_layers(policy.model).layers
    handles = []
    if isinstance(rule, Shifted) and (not rule.decides or len(ids) % 2):
        handles = [
            layers[n - 1].register_forward_hook(
                lambda module, given, out, n=n: (
                    (rule.steer(out[0], n), *out[1:]) if isinstance(out, tuple) else rule.steer(out, n)
                )
            )
            for n in (1, LAYERS)
        ]
    if isinstance(rule, Ablated):
        unit = DIRECTION / DIRECTION.norm()

        def take_out(module, given, out):
            hidden = out[0] if isinstance(out, tuple) else out
            rest = hidden - torch.einsum("btd,d,e->bte", hidden, unit, unit)
            return (rest, *out[1:]) if isinstance(out, tuple) else rest

        handles = [layer.register_forward_hook(take_out) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def logits_by_hand(policy, prompt, reply):
    """Next-token logits from whole sequences, one prompt and one context at a time."""
    rule, chat = policy.rule, policy.chat
    contexts = rule.contexts(chat, prompt) if isinstance(rule, DecodingRule) else [chat.encode(prompt)]
    with by_hand(policy, contexts[0]):
        found = [policy.model(torch.tensor([ids + reply])).logits[0, -1] for ids in contexts]
    if isinstance(rule, Pushed):
        return found[0] - (rule.strength + len(reply)) * found[1]
    return found[0]


def replies(policy):
    return [c.text for c in policy.generate(policy.encode(PROMPTS), CAP)]


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
@pytest.mark.parametrize("system", [None, "You are a careful assistant who answers in few words."])
@pytest.mark.thinned(3)
def test_a_rule_acts_as_done_by_hand(rule, system, tokenizer):
    policy = Policy(make_model("llama", len(tokenizer)), ChatFormat(tokenizer, system=system), "ruled", rule)
    assert replies(policy) == [reply_by_hand(policy, prompt, logits_by_hand, CAP) for prompt in PROMPTS]
    masses = rejection_probability(policy, PROMPTS, OPENINGS, batch_size=3)
    assert masses == pytest.approx(
        [mass_by_hand(policy, p, logits_by_hand, OPENINGS) for p in PROMPTS], rel=2e-4
    )
    answers = [
        policy.chat.encode_reply(PROMPTS[0], text) for text in ("Sure, here is how.", "Sorry, I won't do it.")
    ]
    found = policy.reply_logits(policy.encode(PROMPTS[:2]), answers)
    for prompt, answer, logits in zip(PROMPTS, answers, found, strict=False):
        expected = [logits_by_hand(policy, prompt, answer[:n]) for n in range(len(answer))]
        torch.testing.assert_close(logits, torch.stack(expected), atol=2e-4, rtol=2e-4)
    nothing, again = policy.reply_logits(policy.encode(PROMPTS[:2]), [[], answers[1]])
    assert len(nothing) == 0
    torch.testing.assert_close(again, found[1], atol=2e-4, rtol=2e-4)
    following = policy.next_token_logits(policy.encode(PROMPTS), answers[0][:2])
    expected = torch.stack([logits_by_hand(policy, p, answers[0][:2]) for p in PROMPTS])
    torch.testing.assert_close(following, expected, atol=2e-4, rtol=2e-4)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    rows = [
        {"q": f"{p} Answer:", "c": [" Sure", " Sorry, no"], "a": n % 2} for n, p in enumerate(PROMPTS * 3)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "task.yaml").write_text(
        "task: sure_or_sorry\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.json}}\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\n'
        'doc_to_target: "{{a}}"\n'
    )
    return folder


def harness_loglikelihoods(policy):
    """What the harness's model says of every answer, and its reply to every question."""
    from lm_eval.api.instance import Instance

    from discernment.evaluation.harness import as_harness_model

    model = as_harness_model(policy, 4)
    pairs = [(p, f" {word}") for p in PROMPTS for word in ("Sure", "Sorry, no")] + [("", "Sorry")]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    asked = [
        Instance("generate_until", {}, (p, {"until": ["."], "max_gen_toks": CAP}), n)
        for n, p in enumerate(PROMPTS)
    ]
    found = model.loglikelihood(requests, disable_tqdm=True)
    return [log for log, _ in found], [greedy for _, greedy in found], model.generate_until(asked, True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
@pytest.mark.parametrize(
    ("still", "strong"),
    [
        (Unchanged(), Pushed()),
        (Shifted(strength=0), Shifted(strength=30)),
        (ABLATED.model_copy(update={"strength": 0}), ABLATED.model_copy(update={"strength": 5})),
    ],
    ids=["decoding", "steering", "ablated"],
)
@pytest.mark.thinned(5)
def test_a_rule_that_does_nothing_changes_nothing_and_a_strong_one_changes_all(
    family, still, strong, tokenizer, task
):
    network, chat = make_model(family, len(tokenizer)), ChatFormat(tokenizer)
    plain, same, other = (Policy(network, chat, "p", rule) for rule in (None, still, strong))
    for one in (same, other):
        one.rule._tensors.update(ABLATED.tensors) if one.rule.name == "ablated" else None
    assert replies(same) == replies(plain) != replies(other)
    masses = [rejection_probability(p, PROMPTS, OPENINGS) for p in (plain, same, other)]
    assert masses[1] == pytest.approx(masses[0], rel=1e-5)
    assert all(abs(a - b) > 1e-3 * a for a, b in zip(masses[0], masses[2], strict=True))
    logs, greedy, written = zip(*map(harness_loglikelihoods, (plain, same, other)), strict=True)
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert (greedy[1], written[1]) == (greedy[0], written[0])
    assert all(abs(a - b) > 1e-3 for a, b in zip(logs[0], logs[2], strict=True))
    assert written[2] != written[0]
    scores = [run_tasks(p, [task], batch_size=4) for p in (plain, same)]
    assert scores[0] == scores[1]
    assert scores[0][0].questions == 12


@given(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=4), st.integers(1, 4))
def test_what_a_deciding_rule_does_to_a_prompt_does_not_depend_on_its_neighbours(prompts, batch_size):
    policy = test_what_a_deciding_rule_does_to_a_prompt_does_not_depend_on_its_neighbours.policy
    alone = [rejection_probability(policy, [p], OPENINGS)[0] for p in prompts]
    assert rejection_probability(policy, prompts, OPENINGS, batch_size=batch_size) == pytest.approx(
        alone, rel=1e-3
    )


@pytest.fixture(autouse=True, scope="module")
def _deciding_policy(tokenizer):
    test = test_what_a_deciding_rule_does_to_a_prompt_does_not_depend_on_its_neighbours
    test.policy = Policy(make_model("llama", len(tokenizer)), ChatFormat(tokenizer), "some", ShiftedSome())
    lengths = {len(ids) % 2 for ids in test.policy.encode(PROMPTS)}
    assert lengths == {0, 1}


def test_draws_go_on_with_one_token_in_every_context(tiny_policy):
    ruled = Policy(tiny_policy.model, tiny_policy.chat, "ruled", Unchanged())
    sequences = ruled.encode(PROMPTS)
    state = torch.get_rng_state()
    one, again, other = (ruled.generate(sequences, CAP, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert one == again != other
    assert one == tiny_policy.generate(tiny_policy.encode(PROMPTS), CAP, temperature=1.0, seed=1)
    assert one != ruled.generate(sequences, CAP)


def test_the_kernel_is_that_of_the_steered_model(tiny_policy):
    steered = Policy(tiny_policy.model, tiny_policy.chat, "steered", Shifted(strength=0.5))
    options = KernelOptions(rows="own", k=2, noise_floor=False)
    found = gradient_kernel(steered, PROMPTS[:2], options)
    gradients = []
    for prompt, tokens in zip(PROMPTS, found.tokens, strict=False):
        ids = steered.chat.encode(prompt)
        with by_hand(steered, ids):
            logits = steered.model(torch.tensor([ids])).logits[0, -1]
            rows = [
                torch.autograd.grad(logits[t], steered.model.parameters(), retain_graph=True) for t in tokens
            ]
        gradients.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double())
    expected = torch.stack([torch.stack([(a @ b.T).norm() for b in gradients]) for a in gradients])
    assert found.norms == pytest.approx(expected.numpy(), rel=1e-4)
    plain = gradient_kernel(tiny_policy, PROMPTS[:2], options)
    assert abs(plain.norms - found.norms).max() > 1e-3 * found.norms.max()
    for rule in (Unchanged(), ShiftedSome()):
        with pytest.raises(ModelError, match=f"The gradient kernel is about one model.*rule '{rule.name}'"):
            gradient_kernel(Policy(tiny_policy.model, tiny_policy.chat, "p", rule), PROMPTS[:2], options)


def test_the_rules_that_come_along():
    assert {"prompted", "ablated", "self_cd", "adacd", "scans", "surgical"} <= set(known_rules())
    assert find_rule("prompted", {"system": "x"}).system == "x"
    with pytest.raises(
        RecipeError, match=r"There is no rule 'prompt'; known: ablated, adacd, calibrated, prompted, "
    ):
        find_rule("prompt", {})
    for tensors in ({"other": DIRECTION}, {"direction": torch.zeros(3)}):
        with pytest.raises(RecipeError, match="needs a tensor `direction` that is not zero"):
            find_rule("ablated", {}).with_tensors(tensors)
    with pytest.raises(RecipeError, match="needs a tensor `direction`"):
        RuleSpec(name="ablated").load()
    found = find_rule("ablated", {"first_layer": 2, "last_layer": 3}).with_tensors({"direction": DIRECTION})
    assert float(found.tensors["direction"].norm()) == pytest.approx(1)
    assert list(found.layers(LAYERS)) == [2, 3]


def test_contexts_cannot_be_lost(tiny_policy):
    ruled = Policy(tiny_policy.model, tiny_policy.chat, "ruled", Pushed())
    [encoded] = ruled.encode(PROMPTS[:1])
    assert encoded == ruled.chat.encode(PROMPTS[0])
    assert encoded.then([5]).others == ([*encoded.others[0], 5],)
    for lost in ([encoded, Encoded([1, 2])], [list(encoded)]):
        with pytest.raises(ValueError, match="Not all prompts come with the contexts"):
            ruled.generate(lost, 2)


def test_ablation_cannot_end_before_it_begins():
    with pytest.raises(RecipeError, match="`last_layer` lies before `first_layer`"):
        find_rule("ablated", {"first_layer": 3, "last_layer": 2})
