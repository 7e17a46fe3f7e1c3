"""Surgical: the direction of false refusal is taken out, and that of true refusal left (Wang et al., ICLR 2025, arXiv 2410.03415).

The direction of false refusal is cleared of what it shares with that of true refusal, and then ablated (Arditi et al. 2024,
arXiv 2406.11717) from everything that is written to the residual stream: embeddings, attention, feed-forward blocks. The
authors also ablate the input of every layer. At coefficient 1 that is the same; below it, theirs acts again in each layer
and ours once on each write, which is what can be folded into weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from discernment.errors import RecipeError
from discernment.models.layers import find_layers
from discernment.models.writes import writers
from discernment.policies.rule import Rule, SteeringRule

if TYPE_CHECKING:
    from discernment.policies.policy import Policy


class Surgical(SteeringRule):
    """y - coefficient (y . d) d for all y written to the stream; d is the unit vector of f - orthogonal (f . h / |h|^2) h.

    Its tensors, `[hidden]` each: `false_refusal`, f, and `harm`, h; `direction`, d, follows from them.
    """

    name: ClassVar[str] = "surgical"

    coefficient: float = Field(1.0, description="0 changes nothing, 1 takes the direction out.")
    orthogonal: float = Field(
        1.0,
        description="How far the direction is cleared of true refusal (the authors' lambda): 0 not at all, 1 wholly.",
    )
    positions: int | None = Field(
        None,
        ge=1,
        description="So many of the tokens that the template writes behind a prompt are tried, the last ones; all by "
        "default.",
    )
    weights: bool = Field(
        False, description="Take it out of the weights: the policy is then another model, without a rule."
    )

    def layers(self, depth: int) -> Sequence[int]:
        """All of them."""
        return range(1, depth + 1)

    def steer(self, hidden: Tensor, layer: int) -> Tensor:
        """Take the direction out of what is written."""
        direction = self.tensors["direction"].to(hidden)
        return hidden - self.coefficient * (hidden @ direction)[..., None] * direction

    @contextmanager
    def acting(self, policy: Policy, prompts: Sequence[Sequence[int]] | None) -> Iterator[None]:
        """Act on everything that is written to the residual stream within the `with` block.

        Args:
            policy: The policy.
            prompts: Not looked at.
        """

        def change(module: nn.Module, given: Any, output: Any) -> Any:
            written = output[0] if isinstance(output, tuple) else output
            left = self.steer(written, 0)
            return (left, *output[1:]) if isinstance(output, tuple) else left

        found = find_layers(policy.model, policy.layer_path)
        handles = [module.register_forward_hook(change) for module in writers(policy.model, found)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Rule:
        """Take the two directions, and make the one of them that is taken out.

        Raises:
            RecipeError: If one is missing, or nothing is left of the first.
        """
        false_refusal, harm = tensors.get("false_refusal"), tensors.get("harm")
        if false_refusal is None or harm is None:
            raise RecipeError("The rule 'surgical' needs the tensors `false_refusal` and `harm`.")
        f, h = false_refusal.double(), harm.double()
        direction = f - self.orthogonal * (f @ h) / (h @ h).clamp(min=1e-300) * h
        if not float(direction.norm()) > 1e-9 * float(f.norm()):
            raise RecipeError(
                "The directions of the rule 'surgical' are the same, so nothing is left to take out."
            )
        unit = (direction / direction.norm()).float()
        return super().with_tensors({"false_refusal": false_refusal, "harm": harm, "direction": unit})
