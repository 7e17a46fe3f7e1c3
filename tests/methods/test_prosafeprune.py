"""ProSafePrune: subspaces and their projectors against other ways to them, what is changed, and what `auto` takes."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from discernment.diagnosis.separability import LayerSeparation, layer_states, separability
from discernment.errors import DataError, ModelError
from discernment.files import read_json
from discernment.methods.prosafeprune import (
    ProSafePruneOptions,
    clearest_stretch,
    directions,
    omega,
    prune,
)
from discernment.models.layers import find_layers
from discernment.models.linear_outputs import linear_modules, linear_outputs
from discernment.policies.policy import Policy
from discernment.policies.policy_spec import PolicySpec, RuleSpec
from discernment.policies.rejection import rejection_probability
from discernment.prompts import Label, PromptSet
from taught import taught_model
from tiny import LAYERS, make_benign, make_model, make_prompts

PAIRS, BENIGN = make_prompts(12), make_benign(8)
TOXIC, SEEMINGLY = PAIRS.with_label(Label.TOXIC), PAIRS.with_label(Label.SEEMINGLY_TOXIC)
KINDS = {"safe": BENIGN, "toxic": TOXIC.sample(8, 0), "seemingly": SEEMINGLY.sample(8, 0)}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def start(request, tokenizer, tmp_path_factory):
    """A model that refuses toxic and seemingly toxic prompts."""
    exchanges = [(p.text, "I cannot") for p in PAIRS] + [(p.text, "Sure") for p in BENIGN]
    folder = tmp_path_factory.mktemp("refusing")
    return PolicySpec.of(str(taught_model(folder, tokenizer, exchanges, 45, request.param)))


def run(start, out, validation=None, **options):
    options = {"rank": 3, "first_layer": 2, "last_layer": 3, **options}
    return prune(start, **KINDS, options=ProSafePruneOptions(**options), out=out, validation=validation)


def weights(folder):
    return load_file(f"{folder}/model.safetensors")


@given(st.integers(1, 6), st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
def test_projectors_are_those_of_another_library(rank, prompts, width, seed):
    outputs = np.random.default_rng(seed).normal(size=(prompts, width))
    found = directions(torch.tensor(outputs))[:, :rank]
    projector = (found @ found.T).numpy()
    size = min(rank, prompts, width)
    assert np.linalg.matrix_rank(projector) == size
    np.testing.assert_allclose(projector, projector.T, atol=1e-12)
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
    _, vectors = scipy.linalg.eigh(outputs.T @ outputs)  # the largest eigenvalues are the last
    np.testing.assert_allclose(projector, vectors[:, -size:] @ vectors[:, -size:].T, atol=1e-6)


def test_directions_that_nothing_lies_along_are_left_out():
    outputs = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]])
    assert directions(outputs).shape == (3, 1)
    assert directions(torch.zeros(2, 3)).shape == (3, 0)
    none, some = directions(torch.zeros(2, 3)), directions(outputs)
    left, right = omega([some, none, some], 2)
    assert (left @ right.T).tolist() == torch.zeros(3, 3).tolist()


def test_omega_by_hand():
    half = 0.5**0.5
    # Ps and Pp are the two axes, and Pu the diagonal, (1, 1; 1, 1) / 2: Pu Pp is (0, 1; 0, 1) / 2.
    bases = [torch.tensor(v, dtype=torch.float64)[:, None] for v in ([1, 0], [half, half], [0, 1])]
    left, right = omega(bases, 1)
    torch.testing.assert_close(left @ right.T, torch.tensor([[0, 0], [0, 0.5]], dtype=torch.float64))


def test_weights_and_biases_are_projected(start, tmp_path):
    cost = run(start, tmp_path / "out", strength=0.7)
    assert (cost.notes["layers"], cost.notes["strength"], cost.notes["rank"]) == ([2, 3], 0.7, 3)
    policy = Policy.load(start)
    layers = find_layers(policy.model)
    modules = linear_modules(policy.model, layers, [2, 3])
    spans = []
    for prompts in KINDS.values():
        encoded = policy.encode(prompts.asked)
        spans.append(linear_outputs(policy.model, layers, modules, encoded, "last", policy.pad_id))
    handles = []
    for name, module in modules.items():
        safe, toxic, seemingly = (
            (vt := np.linalg.svd(span[name].double().numpy())[2][:3]).T @ vt for span in spans
        )
        matrix = torch.tensor((np.eye(len(safe)) - safe) @ toxic @ seemingly, dtype=torch.float32)
        handles.append(module.register_forward_hook(lambda m, a, out, w=matrix: out - 0.7 * out @ w.T))
    asked = policy.encode(PAIRS.asked)
    expected = policy.next_token_logits(asked)
    for handle in handles:
        handle.remove()
    found = Policy.load(PolicySpec.read(tmp_path / "out")).next_token_logits(asked)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert (expected - policy.next_token_logits(asked)).abs().max() > 0.1
    before, after = weights(start.model.model), weights(tmp_path / "out/model")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split("layers.")[-1].split("h.")[-1][0] for name in changed} == {"1", "2"}
    assert not any("norm" in name or "ln_" in name for name in changed)
    assert cost.notes["modules"] == len(modules)
    assert read_json(tmp_path / "out/policy.json") == {"model": {"model": "./model"}}


def test_with_strength_zero_it_is_the_model(start, tmp_path):
    run(start, tmp_path / "out", strength=0.0)
    before, after = weights(start.model.model), weights(tmp_path / "out/model")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n].view(torch.int32), after[n].view(torch.int32)) for n in before)


def test_auto_takes_what_leaves_the_least_refusal_where_it_should_not_be(start, tmp_path):
    validation = PromptSet([*TOXIC.sample(3, 1), *SEEMINGLY.sample(4, 1)], PAIRS.provenance)
    cost = run(start, tmp_path / "out", validation, strength="auto", tolerance=0.1)
    tried = cost.notes["tried"]
    assert [(t["strength"], t["rank"]) for t in tried] == [(s, 3) for s in (0, 0.25, 0.5, 0.75, 1)]
    measured = []
    for one in tried:
        run(start, tmp_path / str(one["strength"]), strength=one["strength"])
        policy = Policy.load(PolicySpec.read(tmp_path / str(one["strength"])))
        masses = [
            rejection_probability(policy, validation.with_label(label).asked)
            for label in (Label.TOXIC, Label.SEEMINGLY_TOXIC)
        ]
        measured.append([sum(m) / len(m) for m in masses])
        assert [one["toxic"], one["seemingly_toxic"]] == pytest.approx(measured[-1], abs=1e-3)
    allowed = [n for n, (toxic, _) in enumerate(measured) if toxic >= measured[0][0] - 0.1]
    best = min(allowed, key=lambda n: measured[n][1])
    assert cost.notes["strength"] == tried[best]["strength"]
    taken = weights(tmp_path / str(tried[best]["strength"]) / "model")
    left = weights(tmp_path / "out/model")
    assert all(torch.equal(left[name], taken[name]) for name in left)


def test_auto_may_choose_the_rank_and_may_change_nothing(start, tmp_path):
    validation = PromptSet([*TOXIC.sample(2, 1), *SEEMINGLY.sample(2, 1)], PAIRS.provenance)
    cost = run(start, tmp_path / "out", validation, rank="auto", strength=1.0, tolerance=0.0)
    tried = cost.notes["tried"]
    assert [t["rank"] for t in tried] == [1, 1, 2, 4, 8, 16]
    kept = [t for t in tried if t["toxic"] >= tried[0]["toxic"]]
    best = min(kept, key=lambda t: t["seemingly_toxic"])
    assert (cost.notes["strength"], cost.notes["rank"]) == (best["strength"], best["rank"])


def test_the_layers_are_the_clearest_quarter_of_the_middle_half(start, tmp_path):
    cost = run(start, tmp_path / "out", first_layer=None, last_layer=None)
    together = PromptSet([p for kind in KINDS.values() for p in kind], PAIRS.provenance)
    found = separability(layer_states(Policy.load(start), together), together)
    best = max((2, 3), key=lambda layer: found[layer - 1].silhouette)
    assert LAYERS == 4
    assert cost.notes["layers"] == [best, best]
    assert "highest mean silhouette" in cost.notes["layers_reason"]


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.5], [1]),
        ([0.1, 0.2, 0.9], [3]),
        ([9, 0.1, 0.3, 9], [3]),
        ([9, 9, 0.1, 0.5, 0.2, 0.4, 9, 9], [4, 5]),
        ([9] * 3 + [0.1, 0.2, 0.8, 0.1, 0.3, 0.4] + [9] * 3, [6, 7, 8]),
    ],
)
def test_the_clearest_stretch_by_hand(heights, expected):
    found = [LayerSeparation(n, 0, 0, 0, None, None, None, h) for n, h in enumerate(heights, start=1)]
    assert clearest_stretch(found)[0] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "Input should be a number in its range, or `auto`"),
        ({"rank": 0}, "Input should be a number in its range, or `auto`"),
        ({"first_layer": 3}, "name both `first_layer` and `last_layer`, or neither"),
        ({"first_layer": 3, "last_layer": 2}, "`first_layer: 3` lies behind `last_layer: 2`"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError, match=message):
        ProSafePruneOptions(**options)


def test_mistakes(start, tokenizer, tmp_path):
    with pytest.raises(ModelError, match="Layer 9 is out of range"):
        run(start, tmp_path / "out", last_layer=9)
    with pytest.raises(ModelError, match="Pruning starts from weights, and the policy acts by the rule"):
        run(start.with_rule(RuleSpec(name="prompted")), tmp_path / "out")
    with pytest.raises(DataError, match=r"has 1215 tokens and .* can read 256"):
        long = [BENIGN[0].model_copy(update={"text": "word " * 400})]
        prune(start, PromptSet(long, BENIGN.provenance), TOXIC, SEEMINGLY, ProSafePruneOptions(), tmp_path)
    make_model("mixtral", len(tokenizer)).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    with pytest.raises(ModelError, match="for dense models without experts"):
        run(PolicySpec.of(str(tmp_path / "experts")), tmp_path / "out")
    assert not (tmp_path / "out/model").exists()
