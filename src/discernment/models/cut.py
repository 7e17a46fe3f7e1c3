"""Cutting a model after layer l, so that stage 1 neither runs nor holds what it does not need, and putting it back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from discernment.errors import ModelError
from discernment.models.batch import one_length, pad
from discernment.models.held import HeldLayers, Rerun
from discernment.models.layers import find_layers
from discernment.models.self_check import ONE_LENGTH, Probes, Rows, Way, exact_way

logger = logging.getLogger(__name__)

APART = 2
"""The place of the safe way among those of `CutModel`."""
WORTH_SHARING = 4
"""Tokens from which running a common beginning on its own pays."""


class CutModel(nn.Module):
    """The embeddings and the first `layer` layers of a causal language model; its output is what layer l puts out.

    The later layers and the head are neither run nor registered here: optimizers, checkpoints and device moves do not
    see them, and their bytes do not change. `restore` (or leaving the `with` block) puts the
    model back whole. All parameters start frozen but those of the kept layers.

    Args:
        model: The whole model; it is changed in place until it is restored.
        layer: l, counted from 1: the last layer that is kept. Its output equals `hidden_states[l]` of the whole
            model (before the final norm, also for the last layer).
        path: Name of the layer list, where it is not found by itself.
        train_embeddings: Leave the embeddings trainable. Off by default: they are often tied to the head.
        held: How many of the first layers are left frozen too; `forward` then takes their states, so that they need not run
            again.

    Raises:
        ModelError: If the layers are not found or `layer` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: int,
        *,
        path: str | None = None,
        train_embeddings: bool = False,
        held: int = 0,
    ) -> None:
        super().__init__()
        found = find_layers(model, path)
        found.check(layer)
        self.layer = layer
        self.found = found
        self._list_name = found.name
        # A tuple, so that torch does not register what was cut off.
        self._whole = (found.layers,)
        self._required = {p: p.requires_grad for p in model.parameters()}
        setattr(found.owner, found.name, found.layers[:layer])
        self.decoder = found.reader
        self._model_name, self._config = type(model).__name__, getattr(model, "config", None)
        self._way: dict[bool, int] = {}
        self._one_pass = False
        self._owner = (found.owner,)
        self._held = HeldLayers(self.layers[:held])
        # By this name `accelerate` knows of models which of their parts to spread over devices one by one.
        self._no_split_modules = sorted({type(layer).__name__ for layer in self.layers})
        model.requires_grad_(False)
        if train_embeddings:
            self.decoder.requires_grad_(True)
            self.layers.requires_grad_(False)
        for weights in self.layers[held:].parameters():
            weights.requires_grad_(weights.is_floating_point())  # quantised ones are integers

    @property
    def layers(self) -> nn.ModuleList:
        """The kept layers."""
        layers = getattr(self._owner[0], self._list_name)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def ways(self) -> dict[bool, int]:
        """The ways in which batches are run as far as they were chosen yet, without and with states of held layers."""
        return dict(self._way)

    def cut_off(self) -> list[nn.Parameter]:
        """The weights of the layers behind `layer`."""
        return [weights for layer in self._whole[0][self.layer :] for weights in layer.parameters()]

    def takes_states(self, pad_id: int) -> bool:
        """Whether the layers behind the held ones can be run on stored states; found out once.

        Args:
            pad_id: The padding token.
        """
        held = self._held
        if not held.layers or any(getattr(m, "gradient_checkpointing", False) for m in self.modules()):
            return False
        return held.can_be_recalled(self, self._config, "states", self._apart, pad_id)

    def run_in_one_pass(self, pad_id: int) -> None:
        """Run every batch in one pass from now on, as processes must that have parts of the weights each.

        They wait for each other at each layer, so all have to run the same layers equally often.

        Args:
            pad_id: The padding token.

        Raises:
            ModelError: If the states of padded rows are not those of the rows alone.
        """
        if self._find_way(pad_id, recalls=False) == APART:
            raise ModelError(
                f"Padding changes the states of {self._model_name}, so its layers cannot be spread over devices in stage 1; "
                "start without FSDP."
            )
        self._one_pass = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor, held: Tensor | None = None) -> Tensor:
        """Hidden states after layer l.

        What all rows begin with (a chat template's opening, a system message) is run once, and its keys and values
        serve every row; the gradients are the same. Where that is not so, or padding changes states, rows of one
        length are run at a time.

        Args:
            input_ids: Token ids, `[batch, length]`, padded on the right.
            attention_mask: 1 for tokens, 0 for padding, `[batch, length]`.
            held: States behind the held layers, `[batch, length, hidden]`, where `takes_states`; without them all layers
                run.

        Returns:
            `[batch, length, hidden]`.

        Raises:
            ModelError: If the states of several rows cannot be computed at once; see `exact_way`.
        """
        if self._one_pass or (len(input_ids) == 1 and bool(attention_mask.all())):
            return self._pad(input_ids, attention_mask, held)
        padding = input_ids[attention_mask == 0]
        recalls = held is not None
        if recalls not in self._way:
            self._way[recalls] = self._find_way(int(padding[0]) if len(padding) else 0, recalls=recalls)
        way = self._way[recalls]
        states = (self._share, self._pad, self._apart)[way](input_ids, attention_mask, held)
        if way < APART and len(padding) and not bool(states.isfinite().all()):
            # Attention of padding that a window cuts off from all tokens overflows; its gradients would spread.
            again = self._apart(input_ids, attention_mask, held)
            if bool(again.isfinite().all()):
                logger.warning("Padding gives states that are not finite; it is run in %s.", ONE_LENGTH)
                self._way[recalls] = APART
                return again
        return states

    def _find_way(self, pad_id: int, *, recalls: bool) -> int:
        device = next(self.parameters()).device

        def states(run: Rerun, rows: Rows) -> list[Tensor]:
            batch = pad(rows, pad_id, "right", device)
            held = self._held.alone(self._apart, rows, device) if recalls else None
            return [row[: len(ids)] for row, ids in zip(run(*batch, held), rows, strict=True)]

        def alone(probes: Probes) -> list[Tensor]:
            return [states(self._apart, [row])[0] for row in probes.rows]

        ways = (
            Way(
                "padded batches with a beginning that is run once",
                lambda probes: states(self._share, probes.rows),
            ),
            Way("padded batches", lambda probes: states(self._pad, probes.rows)),
            Way(ONE_LENGTH, lambda probes: states(self._apart, probes.rows)),
        )
        what = f"states from those of layer {len(self._held.layers)}" if recalls else "states"
        return exact_way(self, self._config, what, alone, ways, self._model_name)

    def _share(self, input_ids: Tensor, attention_mask: Tensor, held: Tensor | None) -> Tensor:
        return self.behind(self._shared_prefix(input_ids, attention_mask), input_ids, attention_mask, held)

    def behind(
        self, shared: int, input_ids: Tensor, attention_mask: Tensor, held: Tensor | None = None
    ) -> Tensor:
        """What `forward` gives, in a padded batch whose first tokens are run once where it pays; nothing is tried out.

        Args:
            shared: How many tokens all rows begin with.
            input_ids: As in `forward`.
            attention_mask: As in `forward`.
            held: As in `forward`.
        """
        if shared < WORTH_SHARING:
            return self._pad(input_ids, attention_mask, held)
        from transformers import DynamicCache

        from discernment.models.late_cache import LateCache

        cache = DynamicCache() if held is None else LateCache(len(self._held.layers))
        common = self._last_layer(
            None if held is None else held[:1, :shared],
            input_ids=input_ids[:1, :shared],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_repeat_interleave(len(input_ids))
        rest = self._last_layer(
            None if held is None else held[:, shared:],
            input_ids=input_ids[:, shared:],
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([common.expand(len(input_ids), -1, -1), rest], dim=1)

    def _pad(self, input_ids: Tensor, attention_mask: Tensor, held: Tensor | None) -> Tensor:
        return self._last_layer(held, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)

    def _apart(self, input_ids: Tensor, attention_mask: Tensor, held: Tensor | None) -> Tensor:
        """Rows of one length at a time, without padding; zeros stand where it was."""
        lengths = attention_mask.sum(1).tolist()
        found: list[Tensor] = [torch.empty(0)] * len(lengths)
        for rows in one_length(lengths):
            length = lengths[rows[0]]
            states = self._last_layer(
                None if held is None else held[rows, :length],
                input_ids=input_ids[rows, :length],
                use_cache=False,
            )
            for row, state in zip(rows, states, strict=True):
                found[row] = state
        joined = nn.utils.rnn.pad_sequence(found, batch_first=True)
        return nn.functional.pad(joined, (0, 0, 0, input_ids.shape[1] - joined.shape[1]))

    def _last_layer(self, held: Tensor | None, **inputs: Any) -> Tensor:
        # Taken at the layer itself: some decoders do more than a norm behind their last layer.
        found: list[Tensor] = []

        def keep(layer: nn.Module, arguments: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple | list) else output)

        handle = self.layers[-1].register_forward_hook(keep)
        try:
            with self._held.recalled(held):
                self.decoder(**inputs)
        finally:
            handle.remove()
        if len(found) != 1 or found[0].shape[:-1] != inputs["input_ids"].shape:
            raise ModelError(
                f"The layers of {self._model_name} are not run once with one state a token, so it cannot "
                "be cut after one of them; use another model for what needs states of a layer."
            )
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
        setattr(self._owner[0], self._list_name, self._whole[0])
        for parameter, required in self._required.items():
            parameter.requires_grad_(required)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have the model whole for a while, to measure it between two steps; what is trainable stays so."""
        kept = self.layers
        setattr(self._owner[0], self._list_name, self._whole[0])
        try:
            yield
        finally:
            setattr(self._owner[0], self._list_name, kept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
