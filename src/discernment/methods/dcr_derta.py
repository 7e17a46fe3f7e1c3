"""DCR with a stage 2 that refuses at every point of a reply: refinement, then DeRTa's fine-tuning.

Safety fine-tuning decides at the first tokens, behind DCR as without it: whoever begins the reply for the model gets an
answer. DeRTa (Yuan et al., ACL 2025, arXiv 2407.09121) teaches to turn back later, too, and does nothing against over-refusal.
Here it takes the place of the ordinary fine-tuning behind stage 1; nobody has published the two together.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from discernment.cost import StageCost
from discernment.methods.dcr import Dcr, DcrOptions
from discernment.methods.harmful import harmful_replies
from discernment.methods.method import Materials, Stage
from discernment.policies.policy_spec import PolicySpec
from discernment.training.derta import DertaOptions, align_decoupled


class DcrDertaOptions(DcrOptions, DertaOptions):
    """Options of both."""


class DcrDerta(Dcr):
    """Contrastive refinement, then fine-tuning that refuses at every point of the base model's harmful replies."""

    name: ClassVar[str] = "dcr_derta"
    options_type: ClassVar[type[DcrOptions]] = DcrDertaOptions

    def fine_tuning(
        self, untrained: PolicySpec, materials: Materials, own: Any, seed: int, stage: Stage
    ) -> tuple[Callable[..., StageCost], dict[str, Any]]:
        """DeRTa's, with harmful replies that the base model writes."""
        _, replies = harmful_replies(untrained, materials, self.name, own.harmful, seed, stage)
        derta = DertaOptions(**{name: getattr(own, name) for name in DertaOptions.model_fields})
        return align_decoupled, {"harmful": replies, "own": derta}
