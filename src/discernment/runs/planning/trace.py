"""What a computation holds and multiplies, found by running it on tensors without data.

The model's own code runs under torch's `FakeTensorMode`: every operation gives a tensor of the right size and precision that
holds nothing. So nothing has to be known of an architecture, and no weights are loaded.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Traced(NamedTuple):
    """What a computation takes.

    Attributes:
        start: Bytes that tensors held when it began.
        most: Most bytes that they held at one time.
        operations: Floating-point operations of its matrix products and attention, forward and back.
    """

    start: int
    most: int
    operations: int


@contextmanager
def without_data() -> Iterator[None]:
    """A `with` block in which tensors that are made hold nothing but their size."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def fill(model: nn.Module, device: torch.device) -> None:
    """Put tensors without data in the place of meta tensors, within `without_data`; what is shared stays so.

    Args:
        model: A model on the device `meta`, where modules can still be moved and replaced.
        device: Where its tensors would lie.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    kept = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if kept else empty
                own[name] = made[id(tensor)]  # type: ignore[assignment]


def trace(model: nn.Module, work: Callable[[], object]) -> Traced:
    """Run something on tensors without data.

    Args:
        model: The model; its weights are held from the beginning on.
        work: Runs it.
    """
    with LiveBytes() as live, FlopCounterMode(display=False) as counted:
        live.hold([*model.parameters(), *model.buffers()])
        start = live.now
        work()
    return Traced(start, live.most, counted.get_total_flops())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, of tensors that are made in a `with` block.

    Attributes:
        now: Bytes at present.
        most: Most bytes so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def hold(self, tensors: Iterable[Any]) -> None:
        """Count what tensors lie in; one storage counts once."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._sizes:
                continue
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it has made."""
        made = func(*args, **(kwargs or {}))
        self.hold(tree_leaves(made))
        return made
