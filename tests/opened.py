"""`accelerate` spreads models over devices such as GPUs (FSDP) and not over processors, which torch can do; here it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate.state
import torch.distributed.fsdp
from accelerate.utils import DistributedType

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` sets of its configuration for FSDP2."""


def spread_over_processors(parts: Path) -> None:
    """Let `accelerate` do it in this process, and write down the class of each part that is spread by itself.

    Args:
        parts: Where it is written.
    """
    made, fully_shard = accelerate.state.AcceleratorState.__init__, torch.distributed.fsdp.fully_shard

    def make(self: Any, *arguments: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        made(self, *arguments, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    def spread(module: Any, *arguments: Any, **named: Any) -> Any:
        with parts.open("a") as file:
            for part in module if isinstance(module, list | tuple) else [module]:
                file.write(f"{type(part).__name__}\n")
        return fully_shard(module, *arguments, **named)

    accelerate.state.AcceleratorState.__init__ = make
    opened: Callable[..., Any] = spread
    torch.distributed.fsdp.fully_shard = opened
