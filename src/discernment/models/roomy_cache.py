"""A cache with room for the tokens that come, so that those before them are not copied for each."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 32
"""Tokens for which there is room at a time."""


def with_room(cache: DynamicCache, room: int = ROOM) -> DynamicCache:
    """A cache that goes on from another one, which is left as it is.

    Args:
        cache: Keys and values; layers that keep a window of them stay of their kind.
        room: Tokens for which there is room at a time.
    """
    roomy = copy.copy(cache)
    roomy.layers = [
        RoomyLayer(layer, room)
        if type(layer) is DynamicLayer and layer.is_initialized
        else copy.deepcopy(layer)
        for layer in cache.layers
    ]
    return roomy


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer, which new ones are written behind.

    Args:
        layer: What they go on from; left as it is.
        room: Tokens for which there is room at a time.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        assert layer.keys is not None
        assert layer.values is not None
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(layer.keys, layer.values)
        self.keys: Tensor = layer.keys
        self.values: Tensor = layer.values
        self._of_keys, self._of_values = _Memory(room), _Memory(room)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values behind those that are kept.

        Args:
            key_states: `[batch, heads, tokens, dimension]`.
            value_states: The same of the values.

        Returns:
            All keys and all values.
        """
        self.keys = self._of_keys.behind(self.keys, key_states)
        self.values = self._of_values.behind(self.values, value_states)
        return self.keys, self.values


class _Memory:
    """Memory of which the first tokens are taken."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._memory: Tensor | None = None

    def behind(self, kept: Tensor, new: Tensor) -> Tensor:
        """`new` behind `kept`, which is copied where it does not lie here (rows were chosen) or there is no room left."""
        begin, end, memory = kept.shape[-2], kept.shape[-2] + new.shape[-2], self._memory
        lies_here = memory is not None and kept.data_ptr() == memory.data_ptr() and len(kept) == len(memory)
        if memory is None or not lies_here or end > memory.shape[-2]:
            self._memory = memory = pad(kept, (0, 0, 0, new.shape[-2] + self._room))
        memory[..., begin:end, :] = new
        return memory[..., :end, :]
