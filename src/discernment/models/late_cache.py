"""A cache for layers behind held ones."""

from transformers import DynamicCache


class LateCache(DynamicCache):
    """A cache of which the first layers keep nothing, since they are not run; how full it is, a later one says.

    Args:
        first: The first layer that is run, counted from 0.
    """

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first = first

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens are kept."""
        return super().get_seq_length(max(layer_idx, self._first))

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the mask for so many more tokens."""
        return super().get_mask_sizes(query_length, max(layer_idx, self._first))
