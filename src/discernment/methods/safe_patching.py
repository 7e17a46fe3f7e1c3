"""SafePatching: patches for safety and against over-safety, merged where they do not meet (Zhao et al., arXiv 2405.13820).

1. Replies. The base model replies to the toxic training prompts, as for `derta`; refusals among the replies are left out.
2. Patch. Ascent and descent on these replies give the two patches, which are merged into the aligned model.

The over-safety patch, which by itself would undo the alignment, exists in memory only.
"""

from typing import ClassVar

from discernment.errors import RecipeError
from discernment.methods.harmful import harmful_replies
from discernment.methods.method import Materials, Method, MethodOptions, Stage
from discernment.policies.policy_spec import PolicySpec
from discernment.training.patching import PatchingOptions, patch


class SafePatching(Method):
    """Change an aligned model's weights by two patches from the same harmful replies."""

    name: ClassVar[str] = "safe_patching"
    on: ClassVar[str | None] = "stl"
    options_type: ClassVar[type[PatchingOptions]] = PatchingOptions

    def build(
        self, base: PolicySpec, materials: Materials, options: MethodOptions, stage: Stage
    ) -> PolicySpec:
        """Have the harmful replies written, then patch the aligned model."""
        own: PatchingOptions = options.own or PatchingOptions()
        if base.model.quantization is not None:
            raise RecipeError(
                "No patch can be added to quantised weights; leave 'safe_patching' out, or `quantization` of the model."
            )
        prompts, replies = harmful_replies(
            options.writer(base), materials, self.name, own.harmful, options.align.seed, stage
        )
        return stage(
            "patch",
            patch,
            start=base,
            prompts=prompts,
            harmful=replies,
            options=own,
            max_length=options.align.max_length,
        )
