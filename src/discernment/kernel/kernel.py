"""What a gradient kernel is measured by, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from discernment.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]


class KernelOptions(Frozen):
    """Which kernel to measure, and how."""

    rows: Literal["shared", "own", "probes", "exact", "likelihood"] = Field(
        "shared",
        description="Output rows. `shared`: the same k tokens for all prompts, those with the highest mean "
        "probability; `own`: each prompt's own top-k tokens, as the authors do; `probes`: the whole vocabulary, "
        "estimated with Gaussian probes; `exact`: the whole vocabulary exactly, for few prompts; `likelihood`: one "
        "row, the log-probability of a given reply.",
    )
    k: int = Field(10, ge=1, description="Tokens for `shared` and `own`.")
    probes: int = Field(
        16,
        ge=2,
        description="Gaussian probes a side and prompt for `probes`. Squared norms are estimated without bias; with few "
        "probes their roots come out too low, and ratios of them too high.",
    )
    parameters: Literal["all", "lora"] = Field(
        "all",
        description="All parameters, or LoRA adapters only: those beside quantised weights, or in a model of your own; "
        "others are merged when a model is loaded.",
    )
    layers: tuple[int, int] | None = Field(
        None, description="Only the parameters of layers a to b, counted from 1; no embeddings, norm or head."
    )

    @field_validator("layers")
    @classmethod
    def _in_order(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1]:
            raise ValueError("layers are counted from 1, and the last does not stand before the first")
        return value

    head: bool = Field(True, description="Count the parameters of the head in.")
    by_layer: bool = Field(False, description="Break the kernel down by layer.")
    batch_size: int = Field(16, ge=1)
    memory_gib: float = Field(
        1.0, gt=0, description="What one layer's gradients may take in memory; beyond it they go to a file."
    )
    noise_floor: bool = Field(True, description="Measure two prompts again alone, to see the rounding error.")
    seed: int = 0

    def counts(self, module: str, path: str) -> bool:
        """Whether the parameters of a module are among those asked for, the head's aside.

        Args:
            module: Its name within the model.
            path: Name of the list of layers.
        """
        if self.parameters == "lora" and "lora_" not in module:
            return False
        if self.layers is None:
            return True
        first, last = self.layers
        inside = module.removeprefix(f"{path}.")
        return inside != module and first <= int(inside.partition(".")[0]) + 1 <= last


class KernelCost(NamedTuple):
    """What a kernel took.

    Attributes:
        backward_passes: Backward passes of one prompt and one output row.
        forward_seconds: Seconds in forward passes.
        backward_seconds: Seconds in backward passes.
        contraction_seconds: Seconds for the inner products of all pairs.
    """

    backward_passes: int
    forward_seconds: float
    backward_seconds: float
    contraction_seconds: float


class Tap(NamedTuple):
    """What passes through one layer's output at the first token whose logits count: with replies the prompt's last.

    Attributes:
        states: The hidden states h_l, `[prompts, hidden]`.
        jacobians: dz/dh_l for the output rows, `[prompts, rows, hidden]`.
    """

    states: Tensor
    jacobians: Tensor


@dataclass(frozen=True)
class Kernel:
    """The gradient kernel of n prompts. What belongs to an unscored prompt is NaN.

    Attributes:
        norms: ||K(x_i, x_j)||_F, `[n, n]`, symmetric; for `probes` the roots of unbiased estimates, see `probe_inner`.
        errors: Standard errors of `norms`, `[n, n]`; None where they are exact.
        parts: Groups of parameters: `embeddings`, `layers` (or `layer 1`, `layer 2`, ...), `norm`, `head`; those
            that were left out are absent. With tied weights, what embeddings and head have in common counts with
            the head.
        part_norms: ||K_part(x_i, x_j)||_F, `[parts, n, n]`.
        shares: <K_part, K>_F / ||K||_F^2, `[parts, n, n]`; they add up to 1 over the parts.
        traces: ||J_part(x_i)||_F^2, `[parts, n]`: squared gradient norms.
        tokens: The output rows' token ids, `[n][k]`; None for `probes` and `exact`.
        unscored: Why a prompt has no kernel, by its row number.
        noise_floor: Largest difference of a kernel entry of two prompts measured alone and in the batch, as a share of
            their largest entry; None if it was not looked at.
        cost: What it took.
        taps: States and Jacobians at the layers that were asked for, by layer.
        blocks: K itself, `[n, rows, n, rows]`; None for `exact`.
    """

    norms: Floats
    errors: Floats | None
    parts: tuple[str, ...]
    part_norms: Floats
    shares: Floats
    traces: Floats
    tokens: list[list[int]] | None
    unscored: dict[int, str]
    noise_floor: float | None
    cost: KernelCost
    taps: dict[int, Tap] = field(default_factory=dict)
    blocks: Tensor | None = None
