"""The first layers of a model where they do not change: run once a row, and then given back what they put out."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from discernment.models.batch import pad
from discernment.models.self_check import Probes, Rows, Way, exact_way, make_probes

Rerun = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of token ids and their mask, `[batch, length]`, what is computed of them, `[batch, length, features]`: by all layers, or,
where states are given, `[batch, length, hidden]`, by those behind the held ones."""


class HeldLayers:
    """The first layers of a model, which can be passed over where their states are known.

    What the model does around its layers is left to it: embeddings, masks and positions are made as ever, and each layer
    behind has its own number. The held layers stay where they are and only put out the states instead of running.

    Args:
        layers: The layers, the first of the model first.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.layers = tuple(layers)
        self._entries: int | None = None

    @contextmanager
    def recalled(self, states: Tensor | None) -> Iterator[None]:
        """Have the layers put out given states, without running.

        Args:
            states: What the last of them put out before, `[batch, length, hidden]`; None lets them run.
        """
        if states is None:
            yield
            return
        given = states if self._entries is None else (states, *[None] * (self._entries - 1))
        # Whoever moves weights about may have put a `forward` of its own on a layer.
        own = [(layer, layer.__dict__.get("forward")) for layer in self.layers]
        try:
            for layer in self.layers:
                layer.forward = lambda *_, **__: given
            yield
        finally:
            for layer, forward in own:
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def states(self, work: Callable[[], object]) -> Tensor:
        """What the last of the layers puts out while the model runs once, `[batch, length, hidden]`.

        Raises:
            ValueError: If it is not run once, or puts out more than states.
        """
        found: list[Any] = []
        handle = self.layers[-1].register_forward_hook(lambda _, __, output: found.append(output))
        try:
            work()
        finally:
            handle.remove()
        (output,) = found
        if isinstance(output, tuple):
            self._entries = len(output)
            output, *rest = output
            if any(entry is not None for entry in rest):
                raise ValueError("the layer puts out more than states")
        if not isinstance(output, Tensor):
            raise ValueError("the layer puts out no states")
        return output

    def alone(self, run: Rerun, rows: Rows, device: torch.device) -> Tensor:
        """What the last of the layers puts out for rows that are run one by one, padded with zeros on the right."""
        batches = [pad([row], 0, "right", device) for row in rows]
        return pad_sequence(
            [self.states(partial(run, *batch, None))[0] for batch in batches], batch_first=True
        )

    def can_be_recalled(self, model: nn.Module, config: Any, what: str, run: Rerun, pad_id: int) -> bool:
        """Whether the layers behind give the same of stored states as of whole passes, in training too.

        They do not where held layers hand on more than their states (keys that others share), where dropout makes
        their states others each time, where padding changes them, or where something in front of them is trained.

        Args:
            model: The model, or what is left of it.
            config: Its configuration.
            what: What `run` computes, in the plural.
            run: Runs it.
            pad_id: The padding token.
        """
        device = next(model.parameters()).device

        def whole(probes: Probes, states: Tensor | None = None) -> list[Tensor]:
            batch = pad(probes.rows, pad_id, "right", device)
            found = run(*batch, states)
            return [row[: len(ids)] for row, ids in zip(found, probes.rows, strict=True)]

        def behind(probes: Probes) -> list[Tensor]:
            model.train()
            with torch.enable_grad():
                states = self.alone(run, probes.rows, device)
            model.eval()
            if states.requires_grad:
                raise ValueError("what is in front of the held layers is trained")
            return whole(probes, states)

        if make_probes(config) is None:
            return False
        name = f"{what} behind layer {len(self.layers)}"
        ways = (
            Way("passes from stored states", behind),
            Way("whole passes", whole),
        )
        return exact_way(model, config, name, whole, ways, level=logging.INFO) == 0
