"""A training stage that is stopped from within, at a step of one's choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from transformers import TrainerCallback


@contextmanager
def stopped_at(
    step: int, module: ModuleType, trainer: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A `with` block whose training ends by Ctrl-C after a step; it must get there.

    Args:
        step: The step.
        module: The module that trains.
        trainer: Name of the class of its trainer.
        monkeypatch: Puts everything back.
    """

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

    class Interrupted(getattr(module, trainer)):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Stop())

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, trainer, Interrupted)
        yield
