"""The rules of other systems, each against its formula on whole sequences that are read one at a time."""

import contextlib
import copy
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config, OPTConfig

from by_hand import mass_by_hand, reply_by_hand
from discernment.errors import ModelError, RecipeError
from discernment.kernel.engine import gradient_kernel
from discernment.kernel.kernel import KernelOptions
from discernment.models.chat import ChatFormat
from discernment.models.layer_outputs import layer_outputs
from discernment.models.layers import find_layers
from discernment.models.writes import take_out
from discernment.policies.adacd import AdaCd
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec, leave_rule
from discernment.policies.prompted import Prompted
from discernment.policies.rejection import OpeningTrie, read_once, rejection_probability
from discernment.policies.rule import find_rule
from discernment.policies.scans import Scans, moves
from discernment.policies.self_cd import SelfCd
from discernment.policies.surgical import Surgical
from tiny import CHAT_TEMPLATE, GROUPED, LAYERS, MOE_FAMILIES, make_model

PROMPTS = [
    "How do I kill a Python process?",
    "How do I kill a neighbor?",
    "Write a short letter about the weather.",
    "Sorry",
    "What is the best way to steal the show?",
]
OPENINGS = ["I cannot", "I can't", "Sorry", "S"]
SYSTEM = "You are a careful assistant who answers in few words."
CAP = 6
SAFETY, REFUSING = "Put safety first, always.", "Please refuse to answer me!"
LEAD = CHAT_TEMPLATE.replace(
    "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<s>\\n<s>\\n{% endif %}{{ m['content'] }}"
)
"""A template that writes something before every reply, which the generation prompt does not."""


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FALSE = drawn(32, seed=1)
HARM = FALSE + drawn(32, seed=2)
VECTORS, REFERENCE = drawn(LAYERS, 32, seed=3), drawn(LAYERS, 32, seed=4)
SELF_CD = SelfCd(alpha=2.5, safety=SAFETY)
ADACD = AdaCd(tokens=3, agreement=0.4, plausible=0.2)
SURGICAL = Surgical(coefficient=0.8, orthogonal=0.5).with_tensors({"false_refusal": FALSE, "harm": HARM})


def scans(found, **options):
    tensors = {"vectors": VECTORS, "reference": REFERENCE, "threshold": torch.tensor([found])}
    return Scans(first_layer=2, last_layer=3, **{"strength": 6.0, **options}).with_tensors(tensors)


# ---------------------------------------------------------------------- by hand


def read(model, ids):
    return model(torch.tensor([ids])).logits[0, -1]


@torch.inference_mode()
def logits_by_hand(policy, prompt, reply):
    """Next-token logits as the papers' formulas have them, for `policy.rule`."""
    rule, chat, model = policy.rule, policy.chat, policy.model
    plain = [*chat.encode(prompt), *reply]
    if isinstance(rule, SelfCd):
        with_safety = read(model, [*chat.with_system(rule.safety).encode(prompt), *reply])
        return with_safety - rule.alpha * (with_safety - read(model, plain))
    if isinstance(rule, AdaCd):
        asked = read(model, [*chat.with_system(rule.refusing).encode(prompt), *reply])
        return adacd_by_hand(rule, asked, read(model, plain), len(reply))
    if isinstance(rule, Scans):
        with scans_by_hand(policy, prompt):
            return read(model, plain)
    with surgical_by_hand(policy):
        return read(model, plain)


def adacd_by_hand(rule, asked, plain, step):
    if step >= rule.tokens:
        return plain
    p, p_asked = torch.softmax(plain, 0).tolist(), torch.softmax(asked, 0).tolist()
    order = sorted(range(len(p)), key=lambda token: -p[token])
    agreement = 1 / (1 + order.index(max(range(len(p)), key=lambda token: p_asked[token])))
    own = agreement >= rule.agreement and max(p) >= rule.agreement * max(p_asked)
    found = asked + rule.a * (asked - plain) if own else asked - rule.a * (asked - plain)
    allowed = [token for token in range(len(p)) if p[token] >= rule.plausible * max(p)]
    assert len(allowed) < len(p) or not rule.plausible
    return torch.tensor([float(found[t]) if t in set(allowed) else -1e9 for t in range(len(p))])


@contextlib.contextmanager
def hooked(pairs):
    handles = [module.register_forward_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs_of(policy, ids):
    """What every layer puts out for one row, `[layers, tokens, hidden]`."""
    found = []

    def keep(module, given, out):
        found.append((out[0] if isinstance(out, tuple) else out)[0])

    with hooked([(layer, keep) for layer in find_layers(policy.model).layers]), torch.no_grad():
        policy.model(torch.tensor([ids]))
    return torch.stack(found)


def likeness_by_hand(policy, prompt, first=2):
    ids = policy.chat.encode(prompt)
    sure = [*policy.chat.lead, *policy.chat.encode_opening("Sure")]
    states = outputs_of(policy, ids + sure)
    moved = states[:, len(ids) - 1] - states[:, -1]
    cosines = [torch.cosine_similarity(m, r, dim=0) for m, r in zip(moved, REFERENCE, strict=True)]
    return float(sum(cosines[first - 1 :]) / (LAYERS - first + 1))


def scans_by_hand(policy, prompt):
    rule, last = policy.rule, len(policy.chat.encode(prompt)) - 1
    toxic = likeness_by_hand(policy, prompt) >= float(rule.tensors["threshold"])
    layers = find_layers(policy.model).layers

    def push(n):
        step = rule.strength * VECTORS[n] / VECTORS[n].norm() * (1 if toxic else -1)

        def hook(module, given, out):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            hidden[:, last:] += step
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return hook

    return hooked([(layers[n], push(n)) for n in (1, 2)])


def surgical_by_hand(policy, coefficient=0.8):
    direction = FALSE - 0.5 * (FALSE @ HARM) / (HARM @ HARM) * HARM
    direction = direction / direction.norm()
    projector = coefficient * torch.outer(direction, direction)

    def hook(module, given, out):
        if isinstance(out, tuple):
            return (out[0] - out[0] @ projector, *out[1:])
        return out - out @ projector

    inner = policy.model.model
    blocks = [block for layer in inner.layers for block in (layer.self_attn, layer.mlp)]
    return hooked([(module, hook) for module in (inner.embed_tokens, *blocks)])


# ---------------------------------------------------------------------- acting


def ruled(tokenizer, rule, *, system=None, family="llama", template=None):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    chat = ChatFormat(tokenizer, system=system)
    policy = Policy(make_model(family, len(tokenizer)), chat, "ruled", rule)
    if rule == "scans":
        likeness = sorted(likeness_by_hand(policy, prompt) for prompt in PROMPTS)
        policy.rule = scans((likeness[2] + likeness[3]) / 2)
    return policy


def replies(policy, prompts=PROMPTS):
    return [c.text for c in policy.generate(policy.encode(prompts), CAP)]


RULES = [SELF_CD, ADACD, "scans", SURGICAL]
NAMES = ["self_cd", "adacd", "scans", "surgical"]


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize(("system", "template"), [(None, None), (SYSTEM, None), (SYSTEM, LEAD)])
@pytest.mark.thinned(5)
def test_a_rule_acts_as_its_formula_says(rule, system, template, tokenizer):
    policy = ruled(tokenizer, rule, system=system, template=template)
    assert bool(policy.chat.lead) == bool(template)
    expected = [reply_by_hand(policy, prompt, logits_by_hand, CAP) for prompt in PROMPTS]
    assert replies(policy) == expected == [replies(policy, [prompt])[0] for prompt in PROMPTS]
    masses = rejection_probability(policy, PROMPTS, OPENINGS, batch_size=3)
    by_hand = [mass_by_hand(policy, p, logits_by_hand, OPENINGS) for p in PROMPTS]
    assert masses == pytest.approx(by_hand, rel=1e-3, abs=1e-12)
    trie = OpeningTrie.from_openings(OPENINGS, policy.chat)
    once, begun = read_once(policy, PROMPTS, trie, CAP)
    assert once == pytest.approx(by_hand, rel=1e-3, abs=1e-12)
    sequences = policy.encode(PROMPTS)
    assert begun is not None
    assert [c.text for c in policy.generate(sequences, CAP, begun=begun)] == expected
    answer = policy.chat.encode_reply(PROMPTS[0], "Sure, here is how.")
    found = policy.reply_logits(sequences[:2], [answer, answer[:3]])
    for prompt, logits in zip(PROMPTS, found, strict=False):
        given = [logits_by_hand(policy, prompt, answer[:n]) for n in range(len(logits))]
        same_distributions(logits, torch.stack(given))
    following = policy.next_token_logits(sequences, answer[:2])
    same_distributions(following, torch.stack([logits_by_hand(policy, p, answer[:2]) for p in PROMPTS]))


class AdaCdSlowly(AdaCd):
    """The same, where each opening is read in a pass of its own."""

    tree: ClassVar[bool] = False


@pytest.mark.parametrize("template", [None, LEAD])
def test_openings_that_are_read_one_by_one_are_at_the_same_step(template, tokenizer):
    slow = ruled(tokenizer, AdaCdSlowly(**ADACD.model_dump()), template=template)
    by_hand = [mass_by_hand(slow, p, logits_by_hand, OPENINGS) for p in PROMPTS]
    assert rejection_probability(slow, PROMPTS, OPENINGS) == pytest.approx(by_hand, rel=1e-3, abs=1e-12)


def same_distributions(found, expected):
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen3", "gpt_neox"])
@pytest.mark.thinned(5)
def test_a_rule_changes_what_is_said_whatever_the_neighbours(rule, family, tokenizer):
    policy = ruled(tokenizer, rule, family=family)
    masses = rejection_probability(policy, PROMPTS, OPENINGS)
    alone = [rejection_probability(policy, [prompt], OPENINGS)[0] for prompt in PROMPTS]
    assert masses == pytest.approx(alone, rel=1e-3, abs=1e-12)
    assert replies(policy) == [replies(policy, [prompt])[0] for prompt in PROMPTS]
    policy.rule = None
    assert masses != pytest.approx(rejection_probability(policy, PROMPTS, OPENINGS), rel=1e-2)


@pytest.mark.parametrize(
    ("rule", "same"),
    [
        (SelfCd(alpha=0, safety=SAFETY), Prompted(system=SAFETY)),
        (SelfCd(alpha=1, safety=SAFETY), None),
        (AdaCd(a=0, plausible=0, tokens=99), Prompted(system=REFUSING)),
        (AdaCd(tokens=0), None),
        (scans(0.0, strength=0.0), None),
        (
            Surgical(coefficient=0.0).with_tensors({"false_refusal": FALSE, "harm": HARM}),
            None,
        ),
    ],
    ids=["safe", "plain", "refusing", "no tokens", "strength 0", "coefficient 0"],
)
def test_at_its_ends_a_rule_is_a_model_without_it(rule, same, tokenizer):
    one, other = ruled(tokenizer, rule), ruled(tokenizer, same)
    assert replies(one) == replies(other)
    expected = rejection_probability(other, PROMPTS, OPENINGS)
    assert rejection_probability(one, PROMPTS, OPENINGS) == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == len(PROMPTS)


def test_self_cd_goes_on_beyond_the_model_without_the_message():
    logits = torch.tensor([[[1.0, 2.0]], [[3.0, 1.0]]])  # without and with the message
    assert SelfCd(alpha=2.5).combine(logits, 0).tolist() == [[3 - 2.5 * 2, 1 + 2.5 * 1]]
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        SelfCd(alpha=-1)


def test_adacd_strengthens_a_refusal_that_is_the_models_own_and_drops_what_is_asked_for():
    rule, plain = AdaCd(a=2, plausible=0.1), torch.tensor([[4.0, 3.0, 0.0]])
    agreed, asked = torch.tensor([[4.0, 1.0, 0.0]]), torch.tensor([[3.0, 5.0, 0.0]])

    def combine(refusing, step=0):
        return rule.combine(torch.stack([plain, refusing]), step)[0].tolist()

    # exp(-1) of the likeliest is plausible, exp(-4) is not; p is 0.72 and p_r 0.94: sure enough from 0.76 on only
    assert combine(agreed)[:2] == [4.0, 1 - 2 * (1 - 3)]
    assert AdaCd(a=2, agreement=0.7).combine(torch.stack([plain, agreed]), 0)[0, :2].tolist() == [4, 1 - 4]
    assert combine(asked)[:2] == [3 - 2 * (3 - 4), 5 - 2 * (5 - 3)]
    assert combine(asked)[2] == 5 - 100
    assert combine(asked, 9)[:2] == [5, 1]
    assert combine(asked, 10) == plain[0].tolist()
    both = rule.combine(torch.stack([plain.repeat(2, 1), torch.cat([agreed, asked])]), 0)
    assert both.tolist() == [combine(agreed), combine(asked)]


def test_scans_takes_sides_by_its_threshold(tokenizer):
    policy = ruled(tokenizer, None)
    by_hand = [likeness_by_hand(policy, prompt) for prompt in PROMPTS]
    found = scans(0.0).likeness(moves(policy, policy.encode(PROMPTS)), REFERENCE)
    assert found.tolist() == pytest.approx(by_hand, abs=1e-5)
    for value in sorted(by_hand):
        strengths = scans(value - 1e-4).strengths(policy, policy.encode(PROMPTS))
        assert strengths.tolist() == [1.0 if of >= value - 1e-5 else -1.0 for of in by_hand]
    said = scans(2.0, threshold=-1.0)
    assert said.strengths(policy, policy.encode(PROMPTS)).tolist() == [1.0] * len(PROMPTS)
    with pytest.raises(ModelError, match="The gradient kernel is about one model"):
        gradient_kernel(ruled(tokenizer, said), PROMPTS[:2], KernelOptions(rows="own", k=2))


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, range(11, 21)), (28, range(10, 19)), (4, range(2, 3)), (1, [1])]
)
def test_scans_steers_the_published_share_of_the_layers(depth, layers):
    assert list(Scans().layers(depth)) == list(layers)
    assert list(Scans(last_layer=1).layers(depth)) == [1]
    assert list(Scans(first_layer=30).layers(40)) == [30]


def test_scans_cannot_end_before_it_begins():
    with pytest.raises(
        RecipeError, match=r"cannot take `its options`: .*`last_layer` lies before `first_layer`"
    ):
        find_rule("scans", {"first_layer": 3, "last_layer": 2})


def test_surgical_clears_false_refusal_of_true_refusal():
    tensors = {"false_refusal": FALSE, "harm": HARM}
    unit = HARM / HARM.norm()
    shared = float(FALSE @ unit)
    for cleared in (0.0, 0.4, 1.0):
        direction = Surgical(orthogonal=cleared).with_tensors(tensors).tensors["direction"]
        assert float(direction.norm()) == pytest.approx(1)
        length = float(FALSE.norm() ** 2 - shared**2 + ((1 - cleared) * shared) ** 2) ** 0.5
        assert float(direction @ unit) == pytest.approx((1 - cleared) * shared / length, abs=1e-6)
    assert shared > 1
    with pytest.raises(RecipeError, match="are the same, so nothing is left to take out"):
        Surgical().with_tensors({"false_refusal": 2 * HARM, "harm": HARM})
    with pytest.raises(RecipeError, match="needs the tensors `false_refusal` and `harm`"):
        Surgical().with_tensors({"harm": HARM})
    with pytest.raises(RecipeError, match="needs the tensors `vectors`, `reference` and `threshold`"):
        Scans().with_tensors({"vectors": VECTORS})


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3", "olmo2", "opt"])
def test_nothing_of_the_direction_is_left_in_the_stream(name, tokenizer):
    if name == "olmo2":
        config = Olmo2Config(vocab_size=len(tokenizer), pad_token_id=0, **GROUPED)
        model = AutoModelForCausalLM.from_config(config).eval()
    elif name == "opt":  # whose layers hold their feed-forward matrices themselves
        sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_attention_heads": 4}
        config = OPTConfig(vocab_size=len(tokenizer), num_hidden_layers=LAYERS, **sizes)
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = make_model(name, len(tokenizer))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # the gains of norms, which are alike at first
            torch.nn.init.uniform_(parameter, 0.2, 1.8)
    rule = Surgical().with_tensors({"false_refusal": FALSE, "harm": HARM})
    policy = Policy(model, ChatFormat(tokenizer), "p", rule)
    layers, batch = find_layers(model), policy.batch(policy.encode(PROMPTS[:2]))
    with torch.no_grad(), policy.acting():
        states = layer_outputs(layers, batch, lambda x: x[:, -1])
    assert states.shape == (LAYERS, 2, 32)
    left = (states @ rule.tensors["direction"]).abs() / states.norm(dim=-1)
    assert float(left.max()) < 1e-5
    if name in ("gemma2", "gemma3", "olmo2"):
        with pytest.raises(ModelError, match=r"has a norm behind each block.*leave `weights` out"):
            take_out(model, layers, rule.tensors["direction"], 1.0, [5, 6, 7])
    if name == "opt":
        take_out(model, layers, rule.tensors["direction"], 1.0, [5, 6, 7])
        with torch.no_grad():
            torch.testing.assert_close(layer_outputs(layers, batch, lambda x: x[:, -1]), states)


@pytest.mark.parametrize("tied", [False, True])
def test_a_direction_in_the_weights_acts_as_in_the_states(family, tied, tokenizer):
    if family.startswith("gemma"):
        pytest.skip("a norm stands behind each block")
    model = make_model(family, len(tokenizer), tie_word_embeddings=tied)
    policy = Policy(model, ChatFormat(tokenizer), "p", SURGICAL)
    by_rule, said = policy.next_token_logits(policy.encode(PROMPTS)), replies(policy)
    masses = rejection_probability(policy, PROMPTS, OPENINGS)
    policy.rule = None
    before = policy.next_token_logits(policy.encode(PROMPTS))
    direction = SURGICAL.tensors["direction"]
    take_out(model, find_layers(model), direction, SURGICAL.coefficient, policy.encode(PROMPTS)[0])
    after = policy.next_token_logits(policy.encode(PROMPTS))
    torch.testing.assert_close(after, by_rule, atol=1e-4, rtol=1e-4)
    assert float((after - before).abs().max()) > 0.1
    assert replies(policy) == said
    assert rejection_probability(policy, PROMPTS, OPENINGS) == pytest.approx(masses, rel=1e-3)
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_experts_keep_their_direction_in_the_states(family, tokenizer):
    policy = ruled(tokenizer, SURGICAL, family=family)
    assert len(set(rejection_probability(policy, PROMPTS[:2], OPENINGS))) == 2
    with pytest.raises(ModelError, match=r"are not found; leave `weights` out"):
        take_out(policy.model, find_layers(policy.model), SURGICAL.tensors["direction"], 1.0, [5, 6, 7])


def test_the_kernel_is_that_of_the_model_without_the_direction(tokenizer):
    options = KernelOptions(rows="own", k=2, noise_floor=False)
    steered = ruled(tokenizer, SURGICAL)
    found = gradient_kernel(steered, PROMPTS[:2], options)
    gradients = []
    for prompt, tokens in zip(PROMPTS, found.tokens, strict=False):
        with surgical_by_hand(steered):
            logits = steered.model(torch.tensor([steered.chat.encode(prompt)])).logits[0, -1]
            rows = [
                torch.autograd.grad(logits[t], steered.model.parameters(), retain_graph=True) for t in tokens
            ]
        gradients.append(torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double())
    expected = torch.stack([torch.stack([(a @ b.T).norm() for b in gradients]) for a in gradients])
    assert found.norms == pytest.approx(expected.numpy(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_policy_acts_the_same(name, model_folder, tmp_path):
    rule = {"self_cd": SELF_CD, "adacd": ADACD, "scans": scans(0.05), "surgical": SURGICAL}[name]
    spec = RuleSpec(name=name, options=rule.model_dump())
    start = PolicySpec.of(str(model_folder()))
    if rule.tensors:
        leave_rule(start, spec, {k: v for k, v in rule.tensors.items() if k != "direction"}, tmp_path)
        left = PolicySpec.read(tmp_path)
    else:
        left = start.with_rule(spec)
    loaded = Policy.load(left.save(tmp_path / "saved"))
    policy = Policy(loaded.model, loaded.chat, "made here", rule)
    assert type(loaded.rule) is type(rule)
    assert replies(loaded) == replies(policy)
    expected = rejection_probability(policy, PROMPTS, OPENINGS)
    assert rejection_probability(loaded, PROMPTS, OPENINGS) == pytest.approx(expected, rel=1e-5)
