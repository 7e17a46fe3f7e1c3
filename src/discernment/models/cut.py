"""Cutting a model after layer l, so that stage 1 neither runs nor holds what it does not need, and putting it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from discernment.models.layers import find_layers

WORTH_SHARING = 4
"""Tokens from which running a common beginning on its own pays."""


class CutModel(nn.Module):
    """The embeddings and the first `layer` layers of a causal language model; its output is what layer l puts out.

    The later layers, the final norm and the head are neither run nor registered here: optimizers, checkpoints and
    device moves do not see them, and their bytes do not change. `restore` (or leaving the `with` block) puts the
    model back whole. All parameters start frozen but those of the kept layers.

    Args:
        model: The whole model; it is changed in place until it is restored.
        layer: l, counted from 1: the last layer that is kept. Its output equals `hidden_states[l]` of the whole
            model (before the final norm, also for the last layer).
        path: Name of the layer list, where it is not found by itself.
        train_embeddings: Leave the embeddings trainable. Off by default: they are often tied to the head.

    Raises:
        ModelError: If the layers are not found or `layer` is out of range.
    """

    def __init__(
        self, model: nn.Module, layer: int, *, path: str | None = None, train_embeddings: bool = False
    ) -> None:
        super().__init__()
        found = find_layers(model, path)
        found.check(layer)
        self.layer = layer
        self.found = found
        self._norm_names = found.norms
        self._list_name = found.name
        # A tuple, so that torch does not register what was cut off.
        self._whole = (found.layers, {name: getattr(found.owner, name) for name in found.norms})
        self._required = {p: p.requires_grad for p in model.parameters()}
        setattr(found.owner, found.name, found.layers[:layer])
        for name in found.norms:
            setattr(found.owner, name, nn.Identity())
        self.decoder = found.owner
        self._owner = (found.owner,)
        model.requires_grad_(False)
        if train_embeddings:
            self.decoder.requires_grad_(True)
        self.layers.requires_grad_(True)

    @property
    def layers(self) -> nn.ModuleList:
        """The kept layers."""
        layers = getattr(self._owner[0], self._list_name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states after layer l.

        What all rows begin with (a chat template's opening, a system message) is run once, and its keys and values
        serve every row; the gradients are the same.

        Args:
            input_ids: Token ids, `[batch, length]`, padded on the right.
            attention_mask: 1 for tokens, 0 for padding, `[batch, length]`.

        Returns:
            `[batch, length, hidden]`.
        """
        shared = self._shared_prefix(input_ids, attention_mask)
        if shared < WORTH_SHARING:
            return self._last_layer(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        cache = DynamicCache()
        common = self._last_layer(input_ids=input_ids[:1, :shared], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(input_ids))
        rest = self._last_layer(
            input_ids=input_ids[:, shared:],
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([common.expand(len(input_ids), -1, -1), rest], dim=1)

    def _last_layer(self, **inputs: Any) -> Tensor:
        # Taken at the layer itself: some decoders do more than a norm behind their last layer.
        found: list[Tensor] = []

        def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        handle = self.layers[-1].register_forward_hook(keep)
        try:
            self.decoder(**inputs)
        finally:
            handle.remove()
        return found[0]

    def _shared_prefix(self, input_ids: Tensor, attention_mask: Tensor) -> int:
        """How many tokens all rows begin with; one at least is left to each row."""
        if len(input_ids) == 1:
            return 0
        for module in self.decoder.modules():
            if getattr(module, "gradient_checkpointing", False):
                return 0  # recomputed layers would write to the cache twice
            if isinstance(module, nn.Dropout) and module.training and module.p > 0:
                return 0  # each row has a mask of its own
        same = (input_ids == input_ids[:1]).all(0).long().cumprod(0).sum()
        return int(torch.minimum(same, attention_mask.sum(1).min() - 1))

    def restore(self) -> None:
        """Put the model back whole; the kept layers keep what they have learned. Doing it again does nothing."""
        if self.layers is self._whole[0]:
            return
        # Adapters may have replaced submodules of the kept layers in place; the layers themselves are the same.
        self._put(*self._whole)
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have the model whole for a while, to measure it between two steps; what is trainable stays so."""
        kept = self.layers, {name: getattr(self._owner[0], name) for name in self._norm_names}
        self._put(*self._whole)
        try:
            yield
        finally:
            self._put(*kept)

    def _put(self, layers: nn.ModuleList, norms: dict[str, nn.Module]) -> None:
        setattr(self._owner[0], self._list_name, layers)
        for name, norm in norms.items():
            setattr(self._owner[0], name, norm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
