"""A cut model computes what the whole model computes up to layer l, and leaves the rest alone."""

import pytest
import torch

from discernment.errors import ModelError
from discernment.models.batch import pad
from discernment.models.cut import CutModel
from discernment.models.layers import find_layers
from discernment.training.adapters import add_adapter
from discernment.training.options import LoraOptions
from tiny import LAYERS, make_model

BATCHES = {
    "different": pad([[5, 9, 7, 30, 21], [8, 6, 11], [40, 41, 42, 43]], 0, "right"),
    "common beginning": pad(
        [[3, 4, 5, 6, 7, 30, 21], [3, 4, 5, 6, 7, 11], [3, 4, 5, 6, 7, 42, 43, 44]], 0, "right"
    ),
    "one is the others' beginning": pad([[3, 4, 5, 6, 7, 30, 21], [3, 4, 5, 6, 7]], 0, "right"),
}
LORA = LoraOptions(rank=2)
BATCH = BATCHES["different"]


def whole_state(model, layer, batch):
    """Hidden state `layer` from one run through the whole model."""
    hidden = {}
    listing = find_layers(model)
    handle = listing.layers[layer - 1].register_forward_hook(
        lambda module, args, output: hidden.update(state=output[0] if isinstance(output, tuple) else output)
    )
    model(**batch._asdict(), use_cache=False)
    handle.remove()
    return hidden["state"]


@pytest.mark.parametrize("layer", [1, 2, LAYERS])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_cut_gradients_equal_the_whole_models(family, layer, batch):
    model = make_model(family).double()
    mask = batch.attention_mask.bool()
    weight = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    state = whole_state(model, layer, batch)
    (state[mask] @ weight).square().sum().backward()
    kept = [p for block in find_layers(model).layers[:layer] for p in block.parameters()]
    expected = [None if p.grad is None else p.grad.clone() for p in kept]
    expected_state = state.detach().clone()
    model.zero_grad()

    with CutModel(model, layer) as cut:
        output = cut(**batch._asdict())
        (output[mask] @ weight).square().sum().backward()
        found = [p.grad for p in kept]

    # Norms and rotary embeddings compute in float32 whatever the model's dtype: that is the rounding allowed here.
    torch.testing.assert_close(output[mask], expected_state[mask], rtol=1e-4, atol=1e-4)
    assert sum(g is not None for g in expected) > 0
    for got, want in zip(found, expected, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            assert want.norm() > 0
            assert (got - want).norm() / want.norm() < 1e-4


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_layers_behind_held_ones_learn_the_same_from_stored_states(family, batch):
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    model = make_model(family, **dropout).double()
    mask = batch.attention_mask.bool()
    weight = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = [p for block in find_layers(model).layers[:3] for p in block.parameters()]
    still = len([p for block in find_layers(model).layers[:2] for p in block.parameters()])

    expected_state = whole_state(model, 3, batch)
    (expected_state[mask] @ weight).square().sum().backward()
    expected = [p.grad.clone() for p in kept]
    model.zero_grad()
    with torch.no_grad():
        stored = whole_state(model, 2, batch) * mask[:, :, None]
    with CutModel(model, 3, held=2) as cut:
        assert cut.takes_states(0)
        runs = []
        handle = next(cut.layers[0].children()).register_forward_hook(lambda *_: runs.append(1))
        cut(**batch._asdict(), held=stored)  # the first time the model is tried out
        runs.clear()
        output = cut(**batch._asdict(), held=stored)
        assert not runs
        cut(**batch._asdict())
        assert runs
        handle.remove()
        (output[mask] @ weight).square().sum().backward()

    torch.testing.assert_close(output[mask], expected_state[mask], rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in kept[:still])
    assert len(kept) > still > 0
    for parameter, want in zip(kept[still:], expected[still:], strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - want).norm() / want.norm() < 1e-4


def test_only_the_kept_layers_are_trainable_and_the_rest_is_put_back(family):
    model = make_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits = model(**BATCH._asdict()).logits
    cut = CutModel(model, 2)
    trainable = {id(p) for p in cut.parameters() if p.requires_grad}
    assert trainable == {id(p) for block in cut.layers for p in block.parameters()}
    assert len(cut.layers) == 2
    with torch.no_grad():
        for parameter in cut.layers.parameters():
            parameter.add_(0.01)
    cut.restore()
    cut.restore()
    assert len(find_layers(model).layers) == LAYERS
    assert all(p.requires_grad for p in model.parameters())
    after = model.state_dict()
    path = find_layers(model).path
    trained = {name for name in before if name.startswith((f"{path}.0.", f"{path}.1."))}
    assert trained
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert changed <= trained
    assert not torch.equal(logits, model(**BATCH._asdict()).logits)


def test_held_layers_stay_where_embeddings_are_trained():
    cut = CutModel(make_model("llama"), 3, held=2, train_embeddings=True)
    assert not any(p.requires_grad for p in cut.layers[:2].parameters())
    assert all(p.requires_grad for p in cut.layers[2].parameters())
    assert cut.decoder.embed_tokens.weight.requires_grad


def test_adapters_merge_into_the_kept_layers_only(family):
    model = make_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with CutModel(model, 2) as cut:
        adapted_model = add_adapter(model, cut.found, (1, 2), LORA)
        adapters = [p for p in cut.parameters() if p.requires_grad]
        assert adapters
        with torch.no_grad():
            for parameter in adapters:
                parameter.fill_(0.1)
        adapted = cut(**BATCH._asdict())
        adapted_model.merge_and_unload()
        torch.testing.assert_close(cut(**BATCH._asdict()), adapted, atol=1e-4, rtol=1e-4)
    after = model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    path = find_layers(model).path
    assert changed
    assert all(name.startswith((f"{path}.0.", f"{path}.1.")) for name in changed)


@pytest.mark.parametrize("layer", [0, LAYERS + 1, -1])
def test_layer_out_of_range_is_one_sentence(layer):
    with pytest.raises(ModelError, match=rf"Layer {layer} is out of range: the model has {LAYERS} layers"):
        CutModel(make_model("llama"), layer)


def test_unknown_structure_says_how_to_name_the_list():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("C", (), {"num_hidden_layers": 2})()
            self.first = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])
            self.second = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(2)])

    with pytest.raises(ModelError, match="2 module lists have 2 entries; name the list with `layers`"):
        find_layers(Odd())
    assert find_layers(Odd(), "second").path == "second"
    with pytest.raises(ModelError, match="has no module list 'third'"):
        find_layers(Odd(), "third")


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_a_cut_model_is_whole_for_a_while(family, adapted):
    model = make_model(family)
    uncut = make_model(family)
    with CutModel(model, 2) as cut:
        if adapted:
            adapted_model = add_adapter(model, cut.found, (1, 2), LORA)
        with torch.no_grad():
            for parameter in cut.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        state = cut(**BATCH._asdict())
        trainable = {name for name, p in cut.named_parameters() if p.requires_grad}
        assert trainable

        with pytest.raises(KeyboardInterrupt), cut.whole():
            assert len(find_layers(model).layers) == LAYERS
            found = model(**BATCH._asdict(), use_cache=False).logits
            raise KeyboardInterrupt
        assert len(cut.layers) == 2
        assert cut(**BATCH._asdict()).equal(state)
        assert {name for name, p in cut.named_parameters() if p.requires_grad} == trainable
        if adapted:
            adapted_model.merge_and_unload()
    # The same layers under the tail of a model that was never cut.
    uncut.load_state_dict(model.state_dict())
    expected = uncut(**BATCH._asdict(), use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with cut.whole():  # it is whole already
        assert len(cut.layers) == LAYERS
    assert len(find_layers(model).layers) == LAYERS
