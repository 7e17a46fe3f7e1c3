"""A cache with room keeps what a growing one keeps, whatever is done to it between two tokens."""

import copy

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from discernment.models import roomy_cache
from discernment.models.roomy_cache import RoomyLayer, with_room

HEADS, DIMENSION = 2, 3
MOVES = st.one_of(
    st.tuples(st.just("tokens"), st.integers(1, 5)),
    st.tuples(st.just("crop"), st.integers(0, 2)),
    st.tuples(st.just("rows"), st.lists(st.integers(0, 2), min_size=3, max_size=3)),
    st.tuples(st.just("copy"), st.none()),
)


def states(tokens, rows=3):
    return torch.randn(rows, HEADS, tokens, DIMENSION)


def begun(tokens):
    cache = DynamicCache()
    for layer in range(2):
        cache.update(states(tokens), states(tokens), layer)
    return cache


def kept(cache):
    return [t.clone() for layer in cache.layers for t in (layer.keys, layer.values)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(moves=st.lists(MOVES, min_size=1, max_size=12), room=st.integers(0, 4), seed=st.integers(0, 99))
def test_it_is_a_growing_cache(moves, room, seed):
    torch.manual_seed(seed)
    plain = begun(4)
    first, roomy = kept(plain), with_room(plain, room)
    growing = copy.deepcopy(plain)
    for kind, value in moves:
        if kind == "tokens":
            for layer in range(2):
                keys, values = states(value), states(value)
                found = roomy.update(keys, values, layer)
                assert same(found, growing.update(keys, values, layer))
        elif kind == "crop":
            for cache in (roomy, growing):
                cache.crop(-value)
        elif kind == "rows":
            for cache in (roomy, growing):
                cache.batch_select_indices(torch.tensor(value))
        else:
            left, roomy = roomy, copy.deepcopy(roomy)
            left.update(states(1), states(1), 0)  # is not seen by the copy
        assert same(kept(roomy), kept(growing))
        assert roomy.get_seq_length() == growing.get_seq_length()
    assert same(kept(plain), first)


def test_tokens_are_not_copied_for_each_other():
    roomy = with_room(begun(4))
    assert all(type(layer) is RoomyLayer for layer in roomy.layers)
    places = set()
    for _ in range(roomy_cache.ROOM):
        keys, _ = roomy.update(states(1), states(1), 0)
        places.add(keys.data_ptr())
    assert len(places) == 1


def test_layers_with_a_window_stay():
    from transformers import MistralConfig

    window = DynamicCache(config=MistralConfig(num_hidden_layers=1, sliding_window=6))
    window.update(states(4), states(4), 0)
    roomy, growing = with_room(window), copy.deepcopy(window)
    for _ in range(5):
        keys, values = states(1), states(1)
        assert same(roomy.update(keys, values, 0), growing.update(keys, values, 0))
    assert window.get_seq_length() == 4
