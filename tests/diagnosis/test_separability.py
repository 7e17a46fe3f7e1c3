"""Separability: states as the whole model has them, and what is measured on them, against values worked by hand."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from discernment.diagnosis.separability import (
    LayerSeparation,
    layer_states,
    probe_folds,
    recommend_layer,
    separability,
    separation,
)
from discernment.errors import DataError, ModelError
from discernment.models.chat import ChatFormat
from discernment.models.layers import find_layers
from discernment.policies.policy import Policy
from discernment.prompts import Label, Prompt, PromptSet, Provenance
from tiny import LAYERS, make_benign, make_model, make_prompts

PROBE = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
TEXTS = [
    "How do I kill a Python process?",
    "Hi",
    "Write a short letter to the editor about the weather, and end it with a question.",
]


def prompts_of(rows):
    """Prompts with the given `(toxic, source)`."""
    return PromptSet(
        [
            Prompt(id=str(n), text="x", label=Label.TOXIC if toxic else Label.BENIGN, source=source)
            for n, (toxic, source) in enumerate(rows)
        ],
        Provenance(name="made"),
    )


# Two sources with both labels each, so that there are two folds and each source is the test of one.
ROWS = [*[(True, "a")] * 2, *[(False, "a")] * 2, *[(True, "b")] * 3, *[(False, "b")] * 2]
LINE = torch.tensor([1.0, 3.0, 0.0, 2.0, 5.0, 6.0, 1.0, 0.0, 4.0])[None, :, None]


def random_states(layers=2, hidden=5, seed=0):
    """States with a difference of the labels, for `make_prompts(8)`."""
    toxic = torch.tensor([p.label is Label.TOXIC for p in make_prompts(8)])
    states = torch.randn(layers, len(toxic), hidden, generator=torch.Generator().manual_seed(seed))
    states[:, toxic, 0] += 1.5
    return states + torch.linspace(3, -2, hidden)


# ---------------------------------------------------------------------- states


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_are_those_of_the_whole_model(family, tokenizer, batch_size, pooling):
    policy = Policy(make_model(family, len(tokenizer)), ChatFormat(tokenizer), family)
    prompts = PromptSet(
        [Prompt(id=text, text=text, label=Label.BENIGN, source="s") for text in TEXTS], Provenance(name="p")
    )
    done = []
    states = layer_states(policy, prompts, batch_size=batch_size, pooling=pooling, progress=done.append)
    assert states.shape == (LAYERS, len(TEXTS), 32)
    assert (states.dtype, states.device.type) == (torch.float32, "cpu")
    assert sum(done) == len(TEXTS)
    assert len(done) == -(-len(TEXTS) // batch_size)

    found = find_layers(policy.model)
    final = ("norm", "ln_f", "final_layer_norm")
    [norm] = [child for name, child in found.owner.named_children() if name in final]
    pool = (lambda h: h[0, -1]) if pooling == "last" else (lambda h: h[0].mean(0))
    last_layer = []
    handle = found.layers[-1].register_forward_hook(
        lambda module, args, output: last_layer.append(output[0] if isinstance(output, tuple) else output)
    )
    for n, text in enumerate(TEXTS):
        with torch.no_grad():
            hidden = policy.model(
                torch.tensor([policy.chat.encode(text)]), output_hidden_states=True
            ).hidden_states
            # The last of the whole model's is taken behind the final norm.
            torch.testing.assert_close(norm(last_layer[-1]), hidden[LAYERS])
        expected = [*hidden[1:LAYERS], last_layer[-1]]
        for layer, want in enumerate(expected):
            torch.testing.assert_close(states[layer, n], pool(want), rtol=1e-4, atol=1e-4)
    handle.remove()


def test_the_model_is_left_as_it_was_and_its_head_is_not_run(tiny_policy):
    def refuse(*arguments):
        raise AssertionError("the head was run")

    handle = tiny_policy.model.get_output_embeddings().register_forward_hook(refuse)
    states = layer_states(tiny_policy, make_prompts(3), batch_size=4)
    handle.remove()
    assert torch.equal(states, layer_states(tiny_policy, make_prompts(3), batch_size=4, path="model.layers"))
    assert not any(layer._forward_hooks for layer in find_layers(tiny_policy.model).layers)
    tiny_policy.model(torch.tensor([[5, 6, 7]])).logits.sum().backward()  # it can still be trained


def test_a_state_that_is_not_finite_names_its_prompt(tiny_policy):
    prompts = PromptSet(
        [Prompt(id=text, text=text, label=Label.BENIGN, source="s") for text in TEXTS], Provenance(name="p")
    )
    rare = set(tiny_policy.chat.encode(TEXTS[1])).difference(
        *(tiny_policy.chat.encode(t) for t in (TEXTS[0], TEXTS[2]))
    )
    assert rare
    with torch.no_grad():
        tiny_policy.model.get_input_embeddings().weight[sorted(rare)] = float("inf")
    for batch_size in (1, 3):
        with pytest.raises(ModelError, match="not finite for the prompt 'Hi'; its weights are damaged"):
            layer_states(tiny_policy, prompts, batch_size=batch_size)


# ---------------------------------------------------------------------- measures


def test_measures_worked_by_hand():
    (found,) = separability(LINE, prompts_of(ROWS))
    assert found.layer == 1
    # In one dimension a cosine is a product of signs. The mean is 22/9: of the five toxic states three lie above it,
    # of the four others one. Ordered pairs within the labels: (1^2 - 5) + (2^2 - 4) = -4 of 20 + 12.
    assert found.within == pytest.approx(-4 / 32)
    assert found.cross == pytest.approx(1 * -2 / 20)
    # Uncentred, two of the others are zero, which has no direction.
    assert found.plain_cross == pytest.approx(10 / 20)
    # In source a 3 of 4 pairs are in order, in source b 5 of 6.
    assert found.probe_auroc == found.direction_auroc == pytest.approx(8 / 10)
    # sqrt(2/1 * ((0.4 * (3/4 - 0.8))^2 + (0.6 * (5/6 - 0.8))^2))
    assert found.probe_error == pytest.approx(0.04)
    # The same, one layer at a time, and with plain cosine.
    toxic, sources = zip(*ROWS, strict=True)
    assert separation(LINE[0], toxic, sources) == pytest.approx((found.within, found.cross, 0.8))
    assert separation(LINE[0], toxic, sources, centre=False).cross == pytest.approx(found.plain_cross)


def test_a_label_that_is_told_apart_backwards_is_below_chance():
    states = LINE.clone()
    states[0, 4:] *= -1  # what is high in one source is low in the other
    (found,) = separability(states, prompts_of(ROWS))
    assert found.probe_auroc == found.direction_auroc == pytest.approx((1 + 1) / 10)


def test_silhouette_worked_by_hand():
    # Distance to the own label is 1, to the two of the other label 1 and 2: (1.5 - 1) / 1.5 for each.
    states = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -3.0]])[None] + 7
    rows = [(True, "a"), (True, "a"), (False, "b"), (False, "b")]
    (found,) = separability(states, prompts_of(rows))
    assert found.silhouette == pytest.approx(1 / 3, abs=1e-5)
    assert (found.probe_auroc, found.probe_error, found.direction_auroc) == (None, None, None)


def test_silhouette_and_cosines_by_brute_force():
    prompts, states = make_prompts(8), random_states()
    toxic = [p.label is Label.TOXIC for p in prompts]
    for found, at_layer in zip(separability(states, prompts), states.double().numpy(), strict=True):
        centred = at_layer - at_layer.mean(0)

        def cosine(i, j, vectors=centred):
            return vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])

        pairs = list(itertools.permutations(range(len(toxic)), 2))
        within = [cosine(i, j) for i, j in pairs if toxic[i] == toxic[j]]
        cross = [cosine(i, j) for i, j in pairs if toxic[i] != toxic[j]]
        assert found.within == pytest.approx(np.mean(within), abs=1e-5)
        assert found.cross == pytest.approx(np.mean(cross), abs=1e-5)
        plain = [cosine(i, j, at_layer) for i, j in pairs if toxic[i] != toxic[j]]
        assert found.plain_cross == pytest.approx(np.mean(plain), abs=1e-5)
        silhouettes = []
        for i, label in enumerate(toxic):
            distances = {
                same: [
                    1 - cosine(i, j) for j, other in enumerate(toxic) if j != i and (other == label) == same
                ]
                for same in (True, False)
            }
            own, others = np.mean(distances[True]), np.mean(distances[False])
            silhouettes.append((others - own) / max(own, others))
        assert found.silhouette == pytest.approx(np.mean(silhouettes), abs=1e-5)


def test_held_out_aurocs_by_counting_pairs():
    prompts, states = make_prompts(8, sources=4), random_states()
    toxic = np.array([p.label is Label.TOXIC for p in prompts])
    sources = np.array([p.source for p in prompts])
    folds = probe_folds(toxic, list(sources))
    assert all(not set(sources[fit]) & set(sources[test]) for fit, test in folds)
    held_out = [set(sources[test]) for _, test in folds]
    assert sorted(map(sorted, held_out)) == [[f"source-{n}"] for n in range(4)]
    for found, at_layer in zip(separability(states, prompts), states.numpy(), strict=True):
        ordered = {"probe": 0, "direction": 0}
        compared = 0
        for test_sources in held_out:
            test = np.isin(sources, list(test_sources))
            fit = ~test
            scores = {
                "probe": PROBE.fit(at_layer[fit], toxic[fit]).predict_proba(at_layer[test])[:, 1],
                "direction": at_layer[test]
                @ (at_layer[fit & toxic].mean(0) - at_layer[fit & ~toxic].mean(0)),
            }
            compared += toxic[test].sum() * (~toxic[test]).sum()
            for name, values in scores.items():
                high, low = values[toxic[test]], values[~toxic[test]]
                ordered[name] += sum(a > b for a in high for b in low)
        assert found.probe_auroc == pytest.approx(ordered["probe"] / compared)
        assert found.direction_auroc == pytest.approx(ordered["direction"] / compared)
        assert (
            found.probe_auroc
            == separation(torch.from_numpy(at_layer), toxic, list(sources), centre=False).probe_auroc
        )


def test_a_difference_of_the_sources_does_not_count():
    rng = np.random.default_rng(0)
    layers, per_source = 6, 10
    rows = [(source % 2 == 0, f"s{source}") for source in range(40) for _ in range(per_source)]
    toxic = np.array([label for label, _ in rows])
    places = rng.normal(size=(layers, 40, 100)).repeat(per_source, axis=1)
    states = (places + 0.1 * rng.normal(size=places.shape)).astype(np.float32)
    mixed = StratifiedKFold(5, shuffle=True, random_state=0)
    naive = [cross_val_score(PROBE, x, toxic, cv=mixed, scoring="roc_auc").mean() for x in states]
    assert naive == [1.0] * layers
    found = separability(torch.tensor(states), prompts_of(rows))
    assert np.mean([f.probe_auroc for f in found]) == pytest.approx(0.5, abs=0.1)
    assert np.mean([f.direction_auroc for f in found]) == pytest.approx(0.5, abs=0.1)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_turning_scaling_and_shifting_the_states_changes_nothing(seed, scale, shift):
    prompts, states = make_prompts(8, sources=2), random_states(layers=1)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    turned = separability(scale * states @ torch.tensor(turn, dtype=torch.float32), prompts)
    shifted = separability(states * torch.tensor([scale, 1, 1, 1, 1 / scale]) + shift, prompts)
    for before, after, stretched in zip(separability(states, prompts), turned, shifted, strict=True):
        for name in ("within", "cross", "plain_cross", "direction_auroc", "silhouette"):
            assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-4)
        # The probe standardises each dimension.
        assert stretched.probe_auroc == pytest.approx(before.probe_auroc, abs=1e-4)


@pytest.mark.parametrize("rows", [[], ROWS[:2], ROWS[:3], [ROWS[0], *ROWS[2:4]]])
def test_a_missing_label_is_told(rows):
    states = torch.zeros(2, len(rows), 3)
    with pytest.raises(DataError, match=r"made needs two toxic prompts and two others at least, .*; it has"):
        separability(states, prompts_of(rows))


def test_no_prompts_are_told(tiny_policy):
    with pytest.raises(DataError, match="none has no prompts"):
        layer_states(tiny_policy, PromptSet([], Provenance(name="none")))


# ---------------------------------------------------------------------- recommendation


def layers_with(aurocs, error=0.02, silhouettes=None):
    return [
        LayerSeparation(n, 0.1, 0.0, 0.9, auroc, None if auroc is None else error, auroc, silhouette)
        for n, (auroc, silhouette) in enumerate(
            zip(aurocs, silhouettes or [0.0] * len(aurocs), strict=True), start=1
        )
    ]


@pytest.mark.parametrize(
    ("aurocs", "error", "layer", "reason"),
    [
        (
            [0.6, 0.79, 0.8, 0.78, 0.7],
            0.02,
            2,
            r"Layer 2 .*\(0.790\) .* layer 3 \(0.800, standard error 0.020\)",
        ),
        ([0.6, 0.79, 0.8, 0.78, 0.7], 0.25, 1, r"Layer 1 is the earliest .* layer 3"),
        ([0.6, 0.75, 0.8, 0.78, 0.7], 0.02, 3, r"Layer 3 has the best .* \(0.800, .* and no earlier layer"),
        ([0.6, 0.7, 0.8, 0.8, 0.7], 0.0, 3, "Layer 3 has the best"),
        # The last layer leaves no tail, however good it is.
        ([0.6, 0.7, 0.65, 0.99], 0.02, 2, "Layer 2 has the best"),
        ([0.6], 0.02, 1, "Layer 1 has the best"),
        # One fold has no error.
        ([0.6, 0.79, 0.8, 0.7], None, 3, "Layer 3 has the best"),
    ],
)
def test_the_earliest_layer_within_one_standard_error_is_recommended(aurocs, error, layer, reason):
    found = recommend_layer(layers_with(aurocs, error))
    assert found.layer == layer
    assert re.match(reason, found.reason)


def test_the_error_that_counts_is_that_of_the_best_layer():
    found = layers_with([0.7, 0.79, 0.8, 0.5])
    found[0] = found[0]._replace(probe_error=0.5)
    assert recommend_layer(found).layer == 2


def test_without_a_probe_the_silhouette_decides():
    found = recommend_layer(layers_with([None] * 4, silhouettes=[0.1, 0.3, 0.2, 0.9]))
    assert found.layer == 2
    assert "highest silhouette of the labels (0.300)" in found.reason
    assert "a label has only one source" in found.reason


def test_from_prompts_to_a_layer(tiny_policy):
    prompts = PromptSet.concatenate([make_prompts(6), make_benign(4)], "both")
    found = separability(layer_states(tiny_policy, prompts), prompts)
    assert [f.layer for f in found] == [1, 2, 3, 4]
    assert all(0 <= f.probe_auroc <= 1 and -1 <= f.silhouette <= 1 for f in found)
    assert 1 <= recommend_layer(found).layer < LAYERS
