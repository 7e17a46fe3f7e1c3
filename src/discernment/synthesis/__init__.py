"""Making seemingly toxic prompts: seeds, rewrites, moderation by an ensemble (after OR-Bench, Cui et al., ICML 2025)."""

from discernment.synthesis.chat_models import Answer, ChatModel, EndpointModel, PolicyModel, Sampling
from discernment.synthesis.options import GenerateOptions, GenerateSummary
from discernment.synthesis.pipeline import generate_prompts

__all__ = [
    "Answer",
    "ChatModel",
    "EndpointModel",
    "GenerateOptions",
    "GenerateSummary",
    "PolicyModel",
    "Sampling",
    "generate_prompts",
]
